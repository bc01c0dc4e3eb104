"""Eager PyTorch at its best: inference mode, out=, backward operators called directly; torch.compile is not measured.

Each operator is called through the cheapest binding that takes out=: torch's own functions first, then those in
torch._C._nn, then aten's overloads by their ``_op``, without the Python method around it. Where an operator writes no
given array without a copy, or is slow, the fastest of the ways to do the same is chosen when a case is prepared. What
does not depend on the data (buffers for intermediates, views, constants) is made beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastnn.bench import steps
from fastnn.bench.cases import Arrays, Call, Case, norm_axis
from fastnn.bench.peers.base import Peer, fastest, is_map, out_of

ALPHA, SCALE = 1.6732632423543772, 1.0507009873554805


def _numpy(value: Any) -> tuple[Any, ...]:
    values = value if isinstance(value, tuple | list) else (value,)
    return tuple(v.numpy() if hasattr(v, "numpy") else v for v in values)


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
        self,
        packet: Any,
        args: tuple[Any, ...],
        into: dict[str, Any],
        collect: Callable[[Any], Any] = tuple,
        fresh: Call | None = None,
    ) -> Call:
        """With out=. An operator without a kernel for that computes a new result and copies it; as a rule it takes less
        time without, but not where the pages of a new result take longer than a copy: the faster of the two, then."""
        written = Call(packet.out._op, args, into, collect)
        if self._torch._C._dispatch_has_kernel_for_dispatch_key(f"{packet._qualified_op_name}.out", "CPU"):
            return written
        return fastest(written, fresh or Call(packet.default._op, args, collect=collect, fresh=True))

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
                "hardswish": (nn.hardswish, (x,), {}),
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
            if name == "relu" and case.output != "inplace":
                relu = Call(torch.relu, (x,), fresh=True)
                return fastest(Call(torch.clamp_min, (x, 0), into), relu) if into else relu
            if name in forwards:
                function, args, kwargs = forwards[name]
                return Call(function, args, kwargs | into)
            if name == "softsign":
                return Call(self._softsign(case, out), (x, out))
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
                return Call(packet.default._op, args, kwargs)
            return Call(packet.grad_input._op, args, kwargs | {"grad_input": out})
        if name == "hardswish":
            return (
                self._operator(aten.hardswish_backward, (dy, s), {"out": out})
                if into
                else Call(aten.hardswish_backward.default._op, (dy, s))
            )
        if name == "mish":
            return Call(aten.mish_backward.default._op, (dy, s), fresh=True)
        if name == "log_sigmoid":
            # the CPU kernel reads the buffer that its forward pass saved: exp(-|x|)
            buffer = aten.log_sigmoid_forward.default(s)[1]
            if out is None:
                return Call(aten.log_sigmoid_backward.default._op, (dy, s, buffer))
            return Call(aten.log_sigmoid_backward.grad_input._op, (dy, s, buffer), {"grad_input": out})
        if name == "softsign":
            return Call(self._softsign(case, out), (s, out, dy))
        return None

    def _softsign(self, case: Case, out: Any) -> Callable[..., Any]:
        """x / (1 + |x|), or dy / (1 + |x|)^2, with the denominator in the result's place unless an operand is there."""
        torch = self._torch
        scratch = torch.empty_like(out) if case.output == "inplace" else out

        def run(x: Any, out: Any, dy: Any = None) -> Any:
            t = torch.abs(x, out=scratch).add_(1)
            top, bottom = (x, t) if dy is None else (dy, t.mul_(t))
            return torch.div(top, bottom, out=t if out is None else out)

        return run

    def _rows(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        torch, log = self._torch, case.op.name == "log_softmax"
        if forward:
            x = self._tensor(data["x"])
            return Call(torch._log_softmax if log else torch._softmax, (x, -1, False), {"out": out})
        dy, y = self._tensor(data["dy"]), self._tensor(data["saved"])
        if log:
            return Call(torch._log_softmax_backward_data, (dy, y, -1, y.dtype), {"out": out})
        return Call(torch._softmax_backward_data, (dy, y, -1, y.dtype), {"grad_input": out})

    def _cross_entropy(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        """The log of the softmax, then (softmax - onehot) / n in its place: nll_loss_backward would make an array of
        x's size with one element a row."""
        torch, nll_loss = self._torch, self._torch._C._nn.nll_loss
        x, labels = self._tensor(data["x"]), self._tensor(data["labels"])
        part = 1 / len(x)
        minus = torch.full((len(x), 1), -part, dtype=x.dtype)

        def run(x: Any, labels: Any, out: Any) -> Any:
            torch._log_softmax(x, 1, False, out=out)
            loss = nll_loss(out, labels, None, 1, -100)
            return loss, out.exp_().mul_(part).scatter_add_(1, labels.unsqueeze(1), minus)

        return Call(run, (x, labels, out))

    def _prelu(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        """The backward kernel is slow: on larger arrays, several passes of others take a fraction of its time."""
        torch, aten, x = self._torch, self._aten, self._tensor(data["x"])
        slope = self._tensor(data["slope"]).view(-1, *[1] * (x.dim() - 2))
        if forward:
            return Call(torch._prelu_kernel, (x, slope), fresh=True)
        dy, scratch, sums = self._tensor(data["dy"]), torch.empty_like(x), self._channel_sums(x)
        over = [i for i in range(x.dim()) if i != 1]
        kernel, positive = aten._prelu_kernel_backward.default._op, aten.threshold_backward.grad_input._op

        def fused(dy: Any, x: Any, slope: Any) -> Any:
            dx, dslope = kernel(dy, x, slope)
            return dx, dslope.sum(over)

        def passes(dy: Any, x: Any, slope: Any, out: Any) -> Any:
            positive(dy, x, 0, grad_input=out)
            rest = torch.sub(dy, out, out=scratch)
            return out.addcmul_(rest, slope), sums(rest.mul_(x))

        return fastest(Call(fused, (dy, x, slope), fresh=True), Call(passes, (dy, x, slope, out)))

    def _channel_sums(self, x: Any, weight: float = 1.0) -> Callable[[Any], Any]:
        """A function: weight times the sums over all axes but the second, of contiguous tensors like x. On large ones a
        product of a matrix and a vector takes half the time of PyTorch's reductions over the first or several axes."""
        torch = self._torch
        n, c, size = len(x), x.shape[1], x[0, 0].numel()
        weights = torch.full((size if x.dim() > 2 else n,), weight, dtype=x.dtype)
        if x.dim() == 2:
            return lambda x: torch.mv(x.t(), weights)
        return lambda x: torch.mv(x.view(n * c, size), weights).view(n, c).sum(0)

    def _maxout(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        torch = self._torch
        if forward:
            x = self._tensor(data["x"])
            which = torch.empty(tuple(out.shape), dtype=torch.int64)  # as the backward pass is given it
            later = torch.empty_like(which, dtype=torch.bool)

            def largest(first: Any, second: Any, out: Any) -> Any:  # torch.max over an axis of 2 is slower
                which.copy_(torch.gt(second, first, out=later))
                return torch.maximum(first, second, out=out)

            return Call(largest, (x[:, ::2], x[:, 1::2], out))
        dy, index = self._tensor(data["dy"]), self._tensor(data["which"])

        def scatter(dy: Any, index: Any, pieces: Any) -> Any:
            out.zero_()
            pieces.scatter_(2, index, dy)
            return out

        return Call(scatter, (dy.unsqueeze(2), index.unsqueeze(2), out.view(len(dy), -1, 2)))

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
            args = (x, gamma, beta, None, None, True, 0.1, 1e-5)
            return self._normalized(args, (out, mean, invstd), relu, lambda value: back(value[:1]))
        dy = self._images(case, data["dy"])
        mean, invstd = (self._tensor(np.asarray(s, case.dtype)) for s in data["stats"])
        tail = (gamma, None, None, mean, invstd, True, 1e-5, [True, True, True])
        into = {"out0": out, "out1": torch.empty_like(gamma), "out2": torch.empty_like(gamma)}
        plain = self._operator(aten.native_batch_norm_backward, (dy, x, *tail), into, back)
        if relu:
            y = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.1, 1e-5)[0].relu_()
            masked, relu_backward = torch.empty_like(dy), aten.threshold_backward.grad_input._op

            def run(dy: Any, x: Any, y: Any) -> Any:
                return plain.function(relu_backward(dy, y, 0, grad_input=masked), x, *tail, **plain.kwargs)

            return Call(run, (dy, x, y), collect=back, fresh=plain.fresh)
        return plain

    def _normalized(
        self, args: tuple[Any, ...], into: tuple[Any, ...], relu: bool, collect: Callable[[Any], Any]
    ) -> Call:
        """Batch normalization into the first of ``into``, the others for its statistics, and relu in place."""
        norm = self._torch.native_batch_norm
        if relu:
            return Call(lambda *args: norm(*args, out=into)[0].relu_(), args, collect=collect)
        return Call(norm, args, {"out": into}, collect)

    def _inference(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        x = self._tensor(data["x"])
        names = ("gamma", "beta", "mean", "var")
        gamma, beta, mean, var = (self._tensor(data[name]) for name in names)
        nothing = self._torch.empty(0, dtype=x.dtype)
        args = (x, gamma, beta, mean, var, False, 0.1, 1e-5)
        relu = dict(case.op.options).get("activation") == "relu"
        return self._normalized(args, (out, nothing, nothing), relu, lambda value: value[:1])

    def _layer(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        torch, aten = self._torch, self._aten
        x, gamma, beta = (self._tensor(data[name]) for name in ("x", "gamma", "beta"))
        size = [case.shape[-1]]
        if forward:
            rows = (*case.shape[:-1], 1)
            into = {"out0": out, "out1": torch.empty(rows, dtype=x.dtype), "out2": torch.empty(rows, dtype=x.dtype)}
            args = (x, size, gamma, beta, 1e-5)
            fresh = Call(torch.layer_norm, args, fresh=True)
            return self._operator(aten.native_layer_norm, args, into, lambda value: value[:1], fresh)
        stats = (self._tensor(np.asarray(s, case.dtype)[..., None]) for s in data["stats"])
        into = {"out0": out, "out1": torch.empty_like(gamma), "out2": torch.empty_like(gamma)}
        grads = (self._tensor(data["dy"]), x, size, *stats, gamma, beta, [True, True, True])
        return self._operator(aten.native_layer_norm_backward, grads, into)

    def _rms(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        """From simple operators, since PyTorch's own are such a composition too, with an array for every intermediate;
        its backward pass would need autograd."""
        torch, (n, c) = self._torch, case.shape
        x, gamma = self._tensor(data["x"]), self._tensor(data["gamma"])
        rows = torch.empty((n, 1), dtype=x.dtype)
        if forward:
            eps, norm = torch.full((), 1e-5, dtype=x.dtype), torch._C._linalg.linalg_vector_norm

            def run(x: Any, gamma: Any, out: Any) -> Any:
                norm(x, 2, [1], True, out=rows)
                torch.addcmul(eps, rows, rows, value=1 / c, out=rows).rsqrt_()
                return torch.mul(x, rows, out=out).mul_(gamma)

            whole = Call(torch.rms_norm, (x, [c], gamma, 1e-5), fresh=True)
            return fastest(Call(run, (x, gamma, out)), whole)
        dy, invrms = self._tensor(data["dy"]), self._tensor(np.asarray(data["stats"][0], case.dtype))
        if torch._C._dispatch_has_kernel_for_dispatch_key("aten::_fused_rms_norm_backward", "CPU"):
            args = (dy, x, [c], invrms.view(n, 1), gamma, [True, True])
            return Call(self._aten._fused_rms_norm_backward.default._op, args, fresh=True)
        products, dgamma = torch.empty_like(x), torch.empty_like(gamma)
        transposed, flat = products.t(), rows.view(n)

        def backward(dy: Any, x: Any, invrms: Any, column: Any, gamma: Any, out: Any) -> Any:
            torch.mul(dy, x, out=products)
            torch.mv(transposed, invrms, out=dgamma)
            torch.mv(products, gamma, out=flat)
            rows.mul_(column).mul_(column).mul_(column)
            return torch.mul(dy, gamma, out=out).mul_(column).addcmul_(x, rows, value=-1 / c), dgamma

        return Call(backward, (dy, x, invrms, invrms.view(n, 1), gamma, out))

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
            fresh = Call(torch.group_norm, (x, groups, gamma, beta, 1e-5), fresh=True)
            return self._operator(aten.native_group_norm, args, into, lambda value: value[:1], fresh)
        stats = (self._tensor(np.asarray(s, case.dtype)) for s in data["stats"])
        into = {"out0": out, "out1": torch.empty_like(gamma), "out2": torch.empty_like(gamma)}
        args = (self._tensor(data["dy"]), x, *stats, gamma, n, c, size, groups, [True, True, True])
        return self._operator(aten.native_group_norm_backward, args, into)

    def _stats(self, case: Case, data: Arrays, out: Any, forward: bool) -> Call:
        """The mean, then the mean of squares about it; torch.var_mean takes several times as long."""
        torch, x = self._torch, self._tensor(data["x"])
        means = self._channel_sums(x, x.shape[1] / x.numel())
        centred, along = torch.empty_like(x), (-1, *[1] * (x.dim() - 2))

        def run(x: Any) -> Any:
            mean = means(x)
            torch.sub(x, mean.view(along), out=centred)
            return mean, means(centred.square_())

        return Call(run, (x,), fresh=True)
