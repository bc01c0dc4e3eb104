"""JAX on the CPU, jit compiled and warmed.

A jitted function writes into an array that is donated to it, which is lost to the caller: a large result takes the
place of the last call's. Small results are fresh, which is faster.

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
# Bytes of a result from which on it is donated: glibc's malloc asks the system for such an array in every call, and
# each page of it costs a fault. Of a smaller array it gives back the last one, and donating gains nothing.
MAPPED = 32 << 20


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
        put = self._jax.device_put
        arrays = [put(np.asarray(data[name])) for name in names]
        arrays += [put(np.asarray(value, case.dtype)) for value in data.get("stats", ())]
        donate = case.output == "out" and data["out"].nbytes >= MAPPED
        call = self._donating(function, arrays, data["out"]) if donate else self._fresh(function, arrays)

        def collect(value: Any) -> tuple[Any, ...]:
            return tuple(np.asarray(v) for v in (value if isinstance(value, tuple) else (value,)))

        return Call(call, collect=collect, fresh=not donate)

    def _fresh(self, function: Callable[..., Any], arrays: list[Any]) -> Callable[[], Any]:
        """The least around a call: lower().compile() and jax.block_until_ready take over 1 µs more."""
        jitted = self._jax.jit(function)

        def one() -> Any:
            return jitted(*arrays).block_until_ready()

        def several() -> Any:
            values = jitted(*arrays)
            for value in values:
                value.block_until_ready()
            return values

        return several if isinstance(jitted(*arrays), tuple) else one  # which has compiled it too

    def _donating(self, function: Callable[..., Any], arrays: list[Any], out: np.ndarray) -> Callable[[], Any]:
        """``function``, whose result of the shape of ``out`` is written over the one of the call before."""
        jax = self._jax
        jitted = jax.jit(lambda out, *arrays: function(*arrays), donate_argnums=0, keep_unused=True)
        held = [jax.numpy.zeros(out.shape, out.dtype)]

        def call() -> Any:
            values = jax.block_until_ready(jitted(held[0], *arrays))
            held[0] = next(v for v in values if v.shape == out.shape) if isinstance(values, tuple) else values
            return values

        call()  # compiles it
        return call

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
        return self._norm(case)

    def _rows_backward(self, name: str) -> Callable[..., Any]:
        jnp = self._jax.numpy
        if name == "softmax":
            return lambda dy, y: y * (dy - (dy * y).sum(-1, keepdims=True))
        return lambda dy, y: dy - jnp.exp(y) * dy.sum(-1, keepdims=True)

    def _norm(self, case: Case) -> Callable[..., Any] | None:
        jax, kind = self._jax, case.op.kind
        jnp = jax.numpy
        if kind == "cross_entropy":

            def loss(x: Any, labels: Any) -> Any:
                return -jnp.take_along_axis(jax.nn.log_softmax(x), labels[:, None], 1).mean()

            return jax.value_and_grad(loss)
        if kind not in ("batch", "layer", "rms", "group", "instance"):
            return None
        shape, axis = case.shape, norm_axis(case)
        if kind == "group":  # an axis of groups, and one of the channels of a group
            groups = dict(case.op.options)["groups"]
            shape = (shape[0], groups, shape[1] // groups, *shape[2:])
        channels = (1, 2) if kind == "group" else (axis,)
        others = tuple(i for i in range(len(shape)) if i not in channels)
        axes = {"batch": others, "layer": (axis,), "rms": (axis,)}.get(kind, tuple(range(2, len(shape))))
        along = [size if i in channels else 1 for i, size in enumerate(shape)]
        each = [1 if i in axes else size for i, size in enumerate(shape)]
        relu = dict(case.op.options).get("activation") == "relu"

        def norm(x: Any, gamma: Any, beta: Any = None) -> Any:
            x = x.reshape(shape)
            centred = x - x.mean(axes, keepdims=True) if kind != "rms" else x
            y = centred * jax.lax.rsqrt((centred * centred).mean(axes, keepdims=True) + 1e-5) * gamma.reshape(along)
            y = (y if beta is None else y + beta.reshape(along)).reshape(case.shape)
            return jnp.maximum(y, 0) if relu else y

        def backward(dy: Any, x: Any, gamma: Any, beta: Any, mean: Any, invstd: Any) -> Any:
            """From the statistics that all are given: the vjp of ``norm`` would compute them again."""
            dy, x, gamma, invstd = dy.reshape(shape), x.reshape(shape), gamma.reshape(along), invstd.reshape(each)
            x_hat = (x if mean is None else x - mean.reshape(each)) * invstd
            if relu:
                dy = jnp.where(x_hat * gamma + beta.reshape(along) > 0, dy, 0)
            dgamma, dbeta = (dy * x_hat).sum(others, keepdims=True), dy.sum(others, keepdims=True)
            if kind == "batch":
                count = dy.size // gamma.size
                dx = gamma * invstd * (dy - dbeta / count - x_hat * (dgamma / count))
            else:
                g = dy * gamma
                shift = 0 if mean is None else g.mean(axes, keepdims=True)
                dx = invstd * (g - shift - x_hat * (g * x_hat).mean(axes, keepdims=True))
            return dx.reshape(case.shape), dgamma.reshape(-1), dbeta.reshape(-1)

        if case.direction == "forward":
            return norm
        if kind == "rms":
            return lambda dy, x, gamma, invrms: backward(dy, x, gamma, None, None, invrms)[:2]
        return backward
