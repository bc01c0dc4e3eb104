"""PyTorch at its best: inference mode, out= variants, and the backward operators called directly, without autograd."""

from __future__ import annotations

from collections.abc import Callable
from timeit import repeat
from typing import Any

import numpy as np

from fastnn.bench import steps
from fastnn.bench.cases import Arrays, Call, Case, norm_axis
from fastnn.bench.peers.base import Peer, is_map, out_of

ALPHA, SCALE = 1.6732632423543772, 1.0507009873554805


def _numpy(value: Any) -> tuple[Any, ...]:
    values = value if isinstance(value, tuple | list) else (value,)
    return tuple(v.numpy() if hasattr(v, "numpy") else v for v in values)


def _duration(call: Call) -> float:
    """The shortest of three calls."""
    return min(repeat(lambda: call.function(*call.args, **call.kwargs), number=1, repeat=3))


class Torch(Peer):
    name = "torch"

    def load(self) -> str:
        import torch

        self._torch = torch
        self._aten: Any = torch.ops.aten
        # entered until close(): a with statement around each call would be timed as part of it
        self._mode = torch.inference_mode()
        self._mode.__enter__()
        return str(torch.__version__)

    def close(self) -> None:
        self._mode.__exit__(None, None, None)

    def set_threads(self, count: int) -> None:
        self._torch.set_num_threads(count)

    def _tensor(self, array: Any) -> Any:
        return None if array is None else self._torch.from_numpy(np.asarray(array))

    def prepare(self, case: Case, data: Arrays) -> Call | None:
        call = self._prepare(case, data)
        if call is None:
            return None
        collect = call.collect
        return Call(call.function, call.args, call.kwargs, lambda value: collect(_numpy(value)), call.fresh)

    def _prepare(self, case: Case, data: Arrays) -> Call | None:
        if case.op.kind == "step":
            return Call(steps.torch_step(self._torch, data))
        out = self._tensor(out_of(case, data))
        forward = case.direction == "forward"
        if is_map(case):
            return self._map(case, data, out, forward)
        if case.op.kind == "rows":
            return self._rows(case, data, out, forward)
        special: dict[str, Callable[..., Call | None]] = {
            "cross_entropy": self._cross_entropy,
            "prelu": self._prelu,
            "maxout": self._maxout,
            "batch": self._batch,
            "inference": self._inference,
            "layer": self._layer,
            "rms": self._rms,
            "group": self._group,
            "instance": self._group,
            "stats": self._stats,
        }
        return special[case.op.kind](case, data, out, forward)

    def _operator(
        self, packet: Any, args: tuple[Any, ...], into: dict[str, Any], collect: Callable[[Any], Any] = tuple
    ) -> Call:
        """With out=. An operator without a kernel for that computes a new result and copies it; as a rule it takes less
        time without, but not where the pages of a new result take longer than a copy: the faster of the two, then."""
        written = Call(packet.out, args, into, collect)
        if self._torch._C._dispatch_has_kernel_for_dispatch_key(f"{packet._qualified_op_name}.out", "CPU"):
            return written
        return min(written, Call(packet.default, args, collect=collect, fresh=True), key=_duration)

    def _map(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call | None:
        torch, aten, name = self._torch, self._aten, case.op.name
        nn: Any = torch._C._nn
        into = {} if out is None else {"out": out}
        if forward:
            x = self._tensor(data["x"])
            forwards: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
                "sigmoid": (torch.sigmoid, (x,), {}),
                "tanh": (torch.tanh, (x,), {}),
                "relu": (torch.clamp_min, (x, 0), {}),  # torch.relu has no out=
                "leaky_relu": (nn.leaky_relu, (x,), {}),
                "relu6": (nn.hardtanh, (x, 0, 6), {}),
                "hardtanh": (nn.hardtanh, (x,), {}),
                "hardsigmoid": (nn.hardsigmoid, (x,), {}),
                "hardswish": (aten.hardswish.out if into else torch.nn.functional.hardswish, (x,), {}),
                "elu": (nn.elu, (x,), {}),
                "celu": (nn.elu, (x,), {}),  # celu and elu are one function at alpha = 1; aten.celu has no direct out
                "selu": (nn.elu, (x, ALPHA, SCALE), {}),
                "gelu": (nn.gelu, (x,), {}),
                "gelu_tanh": (nn.gelu, (x,), {"approximate": "tanh"}),
                "silu": (nn.silu, (x,), {}),
                "mish": (nn.mish, (x,), {}),
                "log_sigmoid": (nn.log_sigmoid, (x,), {}),
                "softplus": (nn.softplus, (x,), {}),
            }
            if name == "relu" and not into:
                return Call(torch.relu, (x,))
            if name in forwards:
                function, args, kwargs = forwards[name]
                return Call(function, args, kwargs | into)
            if name == "softsign":
                if out is None:
                    return Call(torch.nn.functional.softsign, (x,))
                return Call(lambda x, out: torch.div(x, x.abs().add_(1), out=out), (x, out))
            return None
        dy, s = self._tensor(data["dy"]), self._tensor(data["saved"])
        backwards: dict[str, tuple[Any, ...]] = {
            "sigmoid": (aten.sigmoid_backward, dy, s),
            "tanh": (aten.tanh_backward, dy, s),
            "relu": (aten.threshold_backward, dy, s, 0),
            "leaky_relu": (aten.leaky_relu_backward, dy, s, 0.01, False),
            "relu6": (aten.hardtanh_backward, dy, s, 0, 6),
            "hardtanh": (aten.hardtanh_backward, dy, s, -1, 1),
            "hardsigmoid": (aten.hardsigmoid_backward, dy, s),
            "elu": (aten.elu_backward, dy, 1, 1, 1, False, s),
            "celu": (aten.elu_backward, dy, 1, 1, 1, False, s),
            "selu": (aten.elu_backward, dy, ALPHA, SCALE, 1, False, s),
            "gelu": (aten.gelu_backward, dy, s),
            "gelu_tanh": (aten.gelu_backward, dy, s),
            "silu": (aten.silu_backward, dy, s),
            "softplus": (aten.softplus_backward, dy, s, 1, 20),
        }
        if name in backwards:
            packet, args = backwards[name][0], backwards[name][1:]
            kwargs = {"approximate": "tanh"} if name == "gelu_tanh" else {}
            if out is None:
                return Call(packet.default, args, kwargs)
            return Call(packet.grad_input, args, kwargs | {"grad_input": out})
        if name == "hardswish":
            return (
                self._operator(aten.hardswish_backward, (dy, s), {"out": out})
                if into
                else Call(aten.hardswish_backward.default, (dy, s))
            )
        if name == "mish":
            return Call(aten.mish_backward.default, (dy, s), fresh=True)
        if name == "log_sigmoid":
            # the CPU kernel reads the buffer that its forward pass saved: exp(-|x|)
            buffer = aten.log_sigmoid_forward.default(s)[1]
            if out is None:
                return Call(aten.log_sigmoid_backward.default, (dy, s, buffer))
            return Call(aten.log_sigmoid_backward.grad_input, (dy, s, buffer), {"grad_input": out})
        if name == "softsign":

            def softsign_backward(dy: Any, x: Any, out: Any) -> Any:
                t = x.abs().add_(1)
                return torch.div(dy, t.mul_(t), out=out)

            return Call(softsign_backward, (dy, s, out))
        return None

    def _rows(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        aten, log = self._aten, case.op.name == "log_softmax"
        if forward:
            x = self._tensor(data["x"])
            packet = aten._log_softmax if log else aten._softmax
            return Call(packet.out, (x, -1, False), {"out": out})
        dy, y = self._tensor(data["dy"]), self._tensor(data["saved"])
        if log:
            return Call(aten._log_softmax_backward_data.out, (dy, y, -1, y.dtype), {"out": out})
        return Call(aten._softmax_backward_data.out, (dy, y, -1, y.dtype), {"grad_input": out})

    def _cross_entropy(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        aten, torch = self._aten, self._torch
        x, labels = self._tensor(data["x"]), self._tensor(data["labels"])
        one = torch.ones((), dtype=x.dtype)

        def run(x: Any, labels: Any, out: Any) -> Any:
            y = aten._log_softmax.default(x, 1, False)
            loss, total = aten.nll_loss_forward.default(y, labels, None, 1, -100)
            g = aten.nll_loss_backward.default(one, y, labels, None, 1, -100, total)
            return loss, aten._log_softmax_backward_data.out(g, y, 1, y.dtype, out=out)

        return Call(run, (x, labels, out))

    def _prelu(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        aten, x, slope = self._aten, self._tensor(data["x"]), self._tensor(data["slope"])
        if forward:
            return Call(self._torch.prelu, (x, slope), fresh=True)
        along = [1, -1] + [1] * (x.dim() - 2)
        over = [i for i in range(x.dim()) if i != 1]

        def run(dy: Any, x: Any, slope: Any) -> Any:
            dx, dslope = aten._prelu_kernel_backward.default(dy, x, slope.view(along))
            return dx, dslope.sum(over)

        return Call(run, (self._tensor(data["dy"]), x, slope), fresh=True)

    def _maxout(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        torch = self._torch
        if forward:
            x = self._tensor(data["x"])
            which = torch.empty(tuple(out.shape), dtype=torch.int64)
            return Call(lambda x, out: torch.max(x.view(len(x), -1, 2), 2, out=(out, which))[0], (x, out))
        dy, index = self._tensor(data["dy"]), self._tensor(data["which"])

        def run(dy: Any, index: Any, out: Any) -> Any:
            out.zero_().view(len(dy), -1, 2).scatter_(2, index.unsqueeze(2), dy.unsqueeze(2))
            return out

        return Call(run, (dy, index, out))

    def _images(self, case: Case, array: Any) -> Any:
        """A tensor with channels second; a channels-last array becomes PyTorch's channels_last memory format."""
        tensor = self._tensor(array)
        if tensor is None or norm_axis(case) == 1:
            return tensor
        return tensor.permute(0, tensor.dim() - 1, *range(1, tensor.dim() - 1))

    def _back(self, case: Case) -> Callable[[Any], tuple[Any, ...]]:
        def collect(value: tuple[Any, ...]) -> tuple[Any, ...]:
            if norm_axis(case) != 1 and value[0].ndim == len(case.shape):
                return (np.moveaxis(value[0], 1, -1), *value[1:])
            return value

        return collect

    def _batch(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call | None:
        torch, aten = self._torch, self._aten
        relu = dict(case.op.options).get("activation") == "relu"
        x, out = self._images(case, data["x"]), self._images(case, out_of(case, data))
        gamma, beta = self._tensor(data["gamma"]), self._tensor(data["beta"])
        back = self._back(case)
        mean, invstd = torch.empty_like(gamma), torch.empty_like(gamma)
        if forward:
            into = {"out": out, "save_mean": mean, "save_invstd": invstd}

            def fused(x: Any) -> Any:
                return aten.native_batch_norm.out(x, gamma, beta, None, None, True, 0.1, 1e-5, **into)[0].relu_()

            if relu:
                return Call(fused, (x,), collect=back)
            args = (x, gamma, beta, None, None, True, 0.1, 1e-5)
            return Call(aten.native_batch_norm.out, args, into, lambda value: back(value[:1]))
        dy = self._images(case, data["dy"])
        mean, invstd = (self._tensor(np.asarray(s, case.dtype)) for s in data["stats"])
        tail = (gamma, None, None, mean, invstd, True, 1e-5, [True, True, True])
        into = {"out0": out, "out1": torch.empty_like(gamma), "out2": torch.empty_like(gamma)}
        plain = self._operator(aten.native_batch_norm_backward, (dy, x, *tail), into, back)
        if relu:
            y = aten.native_batch_norm.default(x, gamma, beta, None, None, True, 0.1, 1e-5)[0].relu_()

            def run(dy: Any, x: Any, y: Any) -> Any:
                return plain.function(aten.threshold_backward.default(dy, y, 0), x, *tail, **plain.kwargs)

            return Call(run, (dy, x, y), collect=back, fresh=plain.fresh)
        return plain

    def _inference(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        torch, aten = self._torch, self._aten
        x = self._tensor(data["x"])
        names = ("gamma", "beta", "mean", "var")
        gamma, beta, mean, var = (self._tensor(data[name]) for name in names)
        nothing = torch.empty(0, dtype=x.dtype)
        into = {"out": out, "save_mean": nothing, "save_invstd": nothing}
        args = (x, gamma, beta, mean, var, False, 0.1, 1e-5)
        if dict(case.op.options).get("activation") == "relu":
            return Call(lambda *args: aten.native_batch_norm.out(*args, **into)[0].relu_(), args)
        return Call(aten.native_batch_norm.out, args, into, lambda value: value[:1])

    def _layer(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        torch, aten = self._torch, self._aten
        x, gamma, beta = (self._tensor(data[name]) for name in ("x", "gamma", "beta"))
        size = [case.shape[-1]]
        if forward:
            rows = (*case.shape[:-1], 1)
            into = {"out0": out, "out1": torch.empty(rows, dtype=x.dtype), "out2": torch.empty(rows, dtype=x.dtype)}
            return self._operator(aten.native_layer_norm, (x, size, gamma, beta, 1e-5), into, lambda value: value[:1])
        stats = (self._tensor(np.asarray(s, case.dtype)[..., None]) for s in data["stats"])
        into = {"out0": out, "out1": torch.empty_like(gamma), "out2": torch.empty_like(gamma)}
        args = (self._tensor(data["dy"]), x, size, *stats, gamma, beta, [True, True, True])
        return self._operator(aten.native_layer_norm_backward, args, into)

    def _rms(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call | None:
        x, gamma = self._tensor(data["x"]), self._tensor(data["gamma"])
        if forward:
            return Call(self._torch.rms_norm, (x, [case.shape[-1]], gamma, 1e-5), fresh=True)
        if self._torch._C._dispatch_has_kernel_for_dispatch_key("aten::_fused_rms_norm_backward", "CPU"):
            invrms = self._tensor(np.asarray(data["stats"][0], case.dtype)[..., None])
            args = (self._tensor(data["dy"]), x, [case.shape[-1]], invrms, gamma, [True, True])
            return Call(self._aten._fused_rms_norm_backward.default, args, fresh=True)
        return self._autograd(case, data, lambda x, g: self._torch.rms_norm(x, [case.shape[-1]], g, 1e-5))

    def _autograd(self, case: Case, data: Arrays, function: Callable[..., Any]) -> Call:
        """For operations without a backward operator: the graph is built once, only its backward pass is timed."""
        torch = self._torch
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.from_numpy(data["x"]).requires_grad_()
            gamma = torch.from_numpy(data["gamma"]).requires_grad_()
            y, dy = function(x, gamma), torch.from_numpy(data["dy"])
        return Call(lambda: torch.autograd.grad(y, (x, gamma), dy, retain_graph=True), fresh=True)

    def _group(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        torch, aten = self._torch, self._aten
        x, gamma, beta = (self._tensor(data[name]) for name in ("x", "gamma", "beta"))
        n, c = case.shape[:2]
        groups = dict(case.op.options).get("groups", c)  # instance norm is group norm with a group a channel
        size = x[0, 0].numel()
        if forward:
            into = {"out0": out}
            into |= {name: torch.empty((n, groups), dtype=x.dtype) for name in ("out1", "out2")}
            args = (x, gamma, beta, n, c, size, groups, 1e-5)
            return self._operator(aten.native_group_norm, args, into, lambda value: value[:1])
        stats = (self._tensor(np.asarray(s, case.dtype)) for s in data["stats"])
        into = {"out0": out, "out1": torch.empty_like(gamma), "out2": torch.empty_like(gamma)}
        args = (self._tensor(data["dy"]), x, *stats, gamma, n, c, size, groups, [True, True, True])
        return self._operator(aten.native_group_norm_backward, args, into)

    def _stats(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        x = self._tensor(data["x"])
        over = [i for i in range(x.dim()) if i != 1]
        collect: Callable[[Any], tuple[Any, ...]] = lambda value: (value[1], value[0])  # noqa: E731
        return Call(self._torch.var_mean, (x, over), {"correction": 0}, collect, fresh=True)
