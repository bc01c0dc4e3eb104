"""JAX on the CPU, jit compiled and warmed. It cannot write into a given array: every result is fresh.

XLA sizes its thread pool by the processors that the process may use when its client is made: for another number of
threads the client is made again, with the process confined to that many processors meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from fastnn.bench import steps
from fastnn.bench.cases import Arrays, Call, Case, norm_axis
from fastnn.bench.peers.base import Peer, is_map

NAMES = {
    "hardtanh": "hard_tanh",
    "hardsigmoid": "hard_sigmoid",
    "hardswish": "hard_swish",
    "softsign": "soft_sign",
    "gelu_tanh": "gelu",
}
FROM_RESULT: dict[str, Callable[[Any, Any], Any]] = {
    "sigmoid": lambda dy, y: dy * y * (1 - y),
    "tanh": lambda dy, y: dy * (1 - y * y),
}


class Jax(Peer):
    name = "jax"
    slow_to_compile = True

    def load(self) -> str:
        import jax

        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_platforms", "cpu")
        self._jax: Any = jax
        return str(jax.__version__)

    def set_threads(self, count: int) -> None:
        from jax.extend import backend

        backend.clear_backends()
        if not hasattr(os, "sched_getaffinity"):
            return
        allowed, before = os.sched_getaffinity(0), set(os.listdir("/proc/self/task"))
        os.sched_setaffinity(0, sorted(allowed)[:count])
        try:
            self._jax.jit(lambda x: x + 1)(np.ones(1)).block_until_ready()
        finally:
            os.sched_setaffinity(0, allowed)
            for thread in set(os.listdir("/proc/self/task")) - before:
                with contextlib.suppress(ProcessLookupError):  # one that has just ended
                    os.sched_setaffinity(int(thread), allowed)

    def prepare(self, case: Case, data: Arrays) -> Call | None:
        if case.output == "inplace":
            return None
        if case.op.kind == "step":
            return Call(steps.jax_step(self._jax, data))
        function = self._function(case)
        if function is None:
            return None
        names: tuple[str, ...] = ("x",) if case.direction == "forward" else ("dy", "saved")
        if case.op.kind not in ("map", "rows"):
            names = tuple(name for name in ("dy", "x", "gamma", "beta", "labels") if name in data)
        arrays = [self._jax.device_put(np.asarray(data[name])) for name in names]
        compiled = self._jax.jit(function).lower(*arrays).compile()
        ready = self._jax.block_until_ready

        def collect(value: Any) -> tuple[Any, ...]:
            return tuple(np.asarray(v) for v in (value if isinstance(value, tuple) else (value,)))

        return Call(lambda *arrays: ready(compiled(*arrays)), tuple(arrays), {}, collect, fresh=True)

    def _function(self, case: Case) -> Callable[..., Any] | None:
        jax, forward, name = self._jax, case.direction == "forward", case.op.name
        if is_map(case) or case.op.kind == "rows":
            f = getattr(jax.nn, NAMES.get(name, name))
            if name.startswith("gelu"):
                approximate = name == "gelu_tanh"
                gelu = f
                f = lambda x: gelu(x, approximate=approximate)  # noqa: E731
            if forward:
                return f
            if case.op.kind == "rows":
                return self._rows_backward(name)
            return FROM_RESULT.get(name, lambda dy, x: jax.vjp(f, x)[1](dy)[0])
        norm = self._norm(case)
        if norm is None:
            return None
        if forward:
            return norm
        return lambda dy, x, *affine: jax.vjp(norm, x, *affine)[1](dy)

    def _rows_backward(self, name: str) -> Callable[..., Any]:
        jnp = self._jax.numpy
        if name == "softmax":
            return lambda dy, y: y * (dy - (dy * y).sum(-1, keepdims=True))
        return lambda dy, y: dy - jnp.exp(y) * dy.sum(-1, keepdims=True)

    def _norm(self, case: Case) -> Callable[..., Any] | None:
        jax, kind = self._jax, case.op.kind
        jnp = jax.numpy
        rank = len(case.shape)
        if kind == "cross_entropy":

            def loss(x: Any, labels: Any) -> Any:
                return -jnp.take_along_axis(jax.nn.log_softmax(x), labels[:, None], 1).mean()

            return jax.value_and_grad(loss)
        if kind not in ("batch", "layer", "rms", "instance"):
            return None
        axis = norm_axis(case)
        along = [1] * rank
        along[axis] = -1
        axes = {
            "batch": tuple(i for i in range(rank) if i != axis),
            "layer": (-1,),
            "rms": (-1,),
            "instance": tuple(range(2, rank)),
        }[kind]
        relu = dict(case.op.options).get("activation") == "relu"

        def norm(x: Any, gamma: Any, beta: Any = None) -> Any:
            centred = x - x.mean(axes, keepdims=True) if kind != "rms" else x
            y = centred * jax.lax.rsqrt((centred * centred).mean(axes, keepdims=True) + 1e-5) * gamma.reshape(along)
            y = y if beta is None else y + beta.reshape(along)
            return jnp.maximum(y, 0) if relu else y

        return norm
