"""PyTorch: fastnn's kernels as operators for CPU tensors, and BatchNorm1d and BatchNorm2d on top of them.

    from fastnn.backends import torch as F
    y = F.gelu(x)                      # torch.ops.fastnn.gelu, differentiable, zero-copy
    model.bn = F.BatchNorm2d(64)       # takes and gives torch.nn.BatchNorm2d's state_dict

Names and parameters are fastnn's (``axis``, not ``dim``). Values that only a backward pass needs are not returned:
normalizations and maxout give y alone, cross_entropy the loss. Every function is a torch.library operator with a fake
and an autograd formula, so torch.compile and torch.export see it as one node. The second derivative of the
activations is a kernel's or written out, that of all others PyTorch's own. Forward mode raises NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

import fastnn as fn
from fastnn.backends import _functions, _host

try:
    import torch
    from torch.autograd import forward_ad
except ImportError as error:
    raise _host.absent("torch") from error

_host.check_version("torch", torch.__version__)

__all__ = [*_functions.NAMES, *_functions.NORMALIZATIONS, "BatchNorm1d", "BatchNorm2d"]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...  # the functions that are made from tables below


_FLOATS = (torch.float16, torch.float32, torch.float64)


def _checked(x: Any, name: str = "x") -> Any:
    """x as a tensor that a kernel takes: integers and bools become the default dtype, as in PyTorch's own functions."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; it must be a torch.Tensor (fastnn.* take NumPy arrays)")
    _refuse_tangents(x)
    if x.dtype in _FLOATS:
        return x
    if x.is_floating_point() or x.is_complex():
        raise TypeError(
            f"{name} has dtype {x.dtype}; accepted are torch.float16, float32, float64, integers and bools; "
            f"convert it first, as in {name}.float()"
        )
    return x.to(torch.get_default_dtype())


def _refuse_tangents(*tensors: Any) -> None:
    """Raise in forward mode: PyTorch has no way to teach it to an operator of another library, and would take 0."""
    if any(isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(
            "fastnn's operators have no forward-mode derivative in PyTorch (torch.func.jvp, jacfwd, forward_ad); "
            "use reverse mode: backward(), torch.autograd.grad, torch.autograd.functional.jacobian"
        )


def _array(x: Any) -> Any:
    """The tensor's memory as an ndarray; None stays None."""
    return None if x is None else x.numpy(force=True)  # "force" resolves lazy negation; on the CPU nothing is copied


def _operator(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    op = torch.library.custom_op(f"fastnn::{name}", run, mutates_args=(), device_types="cpu", schema=schema)
    op.register_fake(fake)
    return op


def _like_first(x: Any, *args: Any) -> Any:
    return torch.empty_like(x)


def _like_second(dy: Any, saved: Any, *args: Any) -> Any:
    return torch.empty_like(saved)


def _contiguous_like_first(x: Any, *args: Any) -> Any:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _unary(function: _functions.Function, slope: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The operators ``name`` and ``name_backward`` of a function of one tensor, whose derivative needs x or y alone.

    slope(dy, saved, *params) is the derivative by PyTorch's functions, for PyTorch to differentiate. An elementwise
    function goes without: it has the operator ``name_second``, the derivative of the derivative.
    """
    name = function.name
    kinds = {float: "float", str: "str", int: "int"}
    declared = "".join(f", {kinds[type(default)]} {param}" for param, default in function.params)

    def forward(x: Any, *params: Any) -> Any:
        y = torch.empty_like(x)
        function.kernel(_array(x), *params, out=y.numpy())
        return y

    def backward(dy: Any, saved: Any, *params: Any) -> Any:
        dx = torch.empty_like(saved)
        function.backward_kernel(_array(dy), _array(saved), *params, out=dx.numpy())
        return dx

    def second(saved: Any, *params: Any) -> Any:
        return torch.from_numpy(_functions.second_derivative(name, _array(saved.contiguous()), *params))

    forward_op = _operator(name, f"(Tensor x{declared}) -> Tensor", forward, _like_first)
    backward_op = _operator(
        f"{name}_backward", f"(Tensor dy, Tensor saved{declared}) -> Tensor", backward, _like_second
    )
    if slope is None:
        second_op = _operator(f"{name}_second", f"(Tensor saved{declared}) -> Tensor", second, _contiguous_like_first)

    def save(ctx: Any, inputs: Any, output: Any) -> None:
        x, *ctx.params = inputs
        ctx.save_for_backward(output if function.saved == "y" else x)

    def differentiate(ctx: Any, dy: Any) -> Any:
        return backward_op(dy, ctx.saved_tensors[0], *ctx.params), *(None for _ in ctx.params)

    def save_backward(ctx: Any, inputs: Any, output: Any) -> None:
        dy, saved, *ctx.params = inputs
        ctx.save_for_backward(dy, saved)

    def differentiate_backward(ctx: Any, g: Any) -> Any:
        dy, saved = ctx.saved_tensors
        if slope is None:
            found = backward_op(g, saved, *ctx.params), g * dy * second_op(saved, *ctx.params)
        else:
            found = torch.func.vjp(lambda dy, saved: slope(dy, saved, *ctx.params), dy, saved)[1](g)
        return *found, *(None for _ in ctx.params)

    forward_op.register_autograd(differentiate, setup_context=save)
    backward_op.register_autograd(differentiate_backward, setup_context=save_backward)
    return function.public(lambda x, *params: forward_op(_checked(x), *params), "PyTorch")


class _Formula:
    """The operators ``name`` and ``name_backward``: value and first derivative are kernels', every other is PyTorch's.

    Of the declared tensors, those whose name ends in "_" are constants. The operators take (tensors, static) and
    (dy, tensors, saved, static), and give y, *saved and the derivatives by the tensors that are there and not
    constants. forward, backward and formula are given Python lists of the tensors.
    """

    def __init__(
        self,
        name: str,
        tensors: str,
        static: str,
        forward: Callable[..., list[Any]],
        fake: Callable[..., list[Any]],
        backward: Callable[..., list[Any]],
        formula: Callable[..., Any],
        saved: int = 0,
    ) -> None:
        declared = tensors.split(", ")
        self._count = len(declared)
        self._variables = [i for i, tensor in enumerate(declared) if not tensor.endswith("_")]
        self._formula = formula
        self._saved = saved
        static = f", {static}" if static else ""
        self.forward = _operator(
            name,
            f"({tensors}{static}) -> ({', '.join(['Tensor'] * (1 + saved))})",
            lambda *args: self._outputs(forward(*self._split(args))),
            lambda *args: self._outputs(fake(*self._split(args))),
        )
        self.backward = _operator(
            f"{name}_backward",
            f"(Tensor dy, {tensors}, Tensor[] saved{static}) -> Tensor[]",
            lambda dy, *args: self._present(args, backward(dy, *self._split(args))),
            lambda dy, *args: self._present(
                args, [None if t is None else torch.empty_like(t) for t in args[: self._count]]
            ),
        )
        self.forward.register_autograd(self._differentiate, setup_context=self._save)
        self.backward.register_autograd(self._differentiate_backward, setup_context=self._save_backward)

    def __call__(self, *args: Any) -> Any:
        _refuse_tangents(*args[1:])  # the first one is from _checked
        return self.forward(*args)[0] if self._saved else self.forward(*args)

    def _outputs(self, values: list[Any]) -> Any:
        return tuple(values) if self._saved else values[0]

    def _split(self, args: Any) -> tuple[Any, ...]:
        return list(args[: self._count]), *args[self._count :]

    def _present(self, args: Any, values: Any) -> list[Any]:
        return [values[i] for i in self._variables if args[i] is not None]

    def _spread(self, args: Any, values: Any) -> list[Any]:
        """The inverse of _present: values in the tensors' places, None in the others."""
        rest = iter(values)
        return [next(rest) if i in self._variables and args[i] is not None else None for i in range(self._count)]

    def _save(self, ctx: Any, inputs: Any, output: Any) -> None:
        tensors, *ctx.static = self._split(inputs)
        ctx.save_for_backward(*tensors, *(output[1:] if self._saved else ()))

    def _differentiate(self, ctx: Any, *gradients: Any) -> Any:
        kept = ctx.saved_tensors  # asked for once: activation checkpointing allows no more
        tensors, saved = kept[: self._count], kept[self._count :]
        # The saved values are outputs too; a derivative must not reach the tensors through them a second time.
        found = self.backward(gradients[0], *tensors, [value.detach() for value in saved], *ctx.static)
        return *self._spread(tensors, found), *(None for _ in ctx.static)

    def _save_backward(self, ctx: Any, inputs: Any, output: Any) -> None:
        dy, *rest = inputs
        tensors, _, *ctx.static = self._split(rest)
        ctx.save_for_backward(dy, *tensors)

    def _differentiate_backward(self, ctx: Any, gradients: Any) -> Any:
        dy, *tensors = ctx.saved_tensors
        present = self._present(tensors, tensors)

        def first(dy: Any, *variables: Any) -> Any:
            def value(*variables: Any) -> Any:
                spread = self._spread(tensors, variables)
                full = [old if new is None else new for old, new in zip(tensors, spread, strict=True)]
                return self._formula(full, *ctx.static)

            return torch.func.vjp(value, *variables)[1](dy)

        by_dy, *by_tensors = torch.func.vjp(first, dy, *present)[1](tuple(gradients))
        return by_dy, *self._spread(tensors, by_tensors), [None] * self._saved, *(None for _ in ctx.static)


def _softmax_slope(dy: Any, y: Any, axis: int) -> Any:
    return y * (dy - (dy * y).sum(axis, keepdim=True))


def _log_softmax_slope(dy: Any, y: Any, axis: int) -> Any:
    return dy - y.exp() * dy.sum(axis, keepdim=True)


def _prelu_forward(tensors: Any, axis: int) -> list[Any]:
    x, slope = tensors
    y = torch.empty_like(x)
    fn.prelu(_array(x), _array(slope), axis=axis, out=y.numpy())
    return [y]


def _prelu_backward(dy: Any, tensors: Any, saved: Any, axis: int) -> list[Any]:
    x, slope = tensors
    dx = torch.empty_like(x)
    _, dslope = fn.prelu_backward(_array(dy), _array(x), _array(slope), axis=axis, out=dx.numpy())
    return [dx, torch.from_numpy(np.asarray(dslope))]


def _prelu_formula(tensors: Any, axis: int) -> Any:
    x, slope = tensors
    return torch.where(x > 0, x, x * slope.reshape(_functions.along(slope.shape, x.ndim, axis)))


def _maxout_forward(tensors: Any, pieces: int, axis: int) -> list[Any]:
    return [torch.from_numpy(result) for result in fn.maxout(_array(tensors[0]), pieces, axis)]


def _maxout_fake(tensors: Any, pieces: int, axis: int) -> list[Any]:
    x = tensors[0]
    shape = list(x.shape)
    shape[axis] //= pieces
    return [x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)]


def _maxout_backward(dy: Any, tensors: Any, saved: Any, pieces: int, axis: int) -> list[Any]:
    dx = torch.empty_like(tensors[0])
    fn.maxout_backward(_array(dy), _array(saved[0]), pieces, axis, out=dx.numpy())
    return [dx]


def _maxout_formula(tensors: Any, pieces: int, axis: int) -> Any:
    x = tensors[0]
    return x.reshape(_functions.split(x.shape, pieces, axis)).amax(axis % x.ndim + 1)


def _cross_entropy_forward(tensors: Any) -> list[Any]:
    logits, labels = tensors
    dlogits = torch.empty_like(logits)
    loss, _ = fn.cross_entropy(_array(logits), _array(labels), out=dlogits.numpy())
    return [torch.as_tensor(loss, dtype=logits.dtype), dlogits]


_prelu = _Formula(
    "prelu",
    "Tensor x, Tensor slope",
    "int axis",
    _prelu_forward,
    lambda tensors, axis: [torch.empty_like(tensors[0])],
    _prelu_backward,
    _prelu_formula,
)
_maxout = _Formula(
    "maxout", "Tensor x", "int pieces, int axis", _maxout_forward, _maxout_fake, _maxout_backward, _maxout_formula, 1
)
_cross_entropy = _Formula(
    "cross_entropy",
    "Tensor logits, Tensor labels_",
    "",
    _cross_entropy_forward,
    lambda tensors: [tensors[0].new_empty(()), torch.empty_like(tensors[0])],
    lambda dy, tensors, saved: [dy * saved[0]],
    lambda tensors: torch.nn.functional.cross_entropy(tensors[0], tensors[1].long()),
    saved=1,
)


def prelu(x: Any, slope: Any, *, axis: int = 1) -> Any:
    """fastnn.prelu for PyTorch, differentiable with respect to x and slope."""
    x = _checked(x)
    return _prelu(x, torch.as_tensor(slope, dtype=x.dtype), _functions.integer(axis, "axis"))


def maxout(x: Any, pieces: int = 2, axis: int = 1) -> Any:
    """y of fastnn.maxout for PyTorch, differentiable with respect to x."""
    return _maxout(_checked(x), _functions.integer(pieces, "pieces"), _functions.integer(axis, "axis"))


def cross_entropy(logits: Any, labels: Any) -> Any:
    """The loss of fastnn.cross_entropy for PyTorch, differentiable with respect to the logits."""
    return _cross_entropy(_checked(logits, "logits"), torch.as_tensor(_functions.labels(labels)))


# torch.nn.functional's names of the activations that a normalization can fuse.
_HOST_ACTIVATIONS = {
    name: getattr(torch.nn.functional, "logsigmoid" if name == "log_sigmoid" else name)
    for name in _functions.ELEMENTWISE
}


def _normalization(name: str, operator: str = "") -> _Formula:
    """The operators of a normalization; batch_norm_training is batch_norm that tells the variance too."""

    def norm(static: Any) -> _functions.Norm:
        eps, axis, groups, activation = static
        return _functions.Norm(name, eps, axis, groups, activation)

    def forward(tensors: Any, *static: Any) -> list[Any]:
        y = torch.empty_like(tensors[0])
        run: Any = norm(static).forward_with_variance if training else norm(static).forward
        result = run(*map(_array, tensors), out=y.numpy())
        return [y] if constants else [y, *(torch.from_numpy(np.asarray(stat)) for stat in result[1:])]

    def fake(tensors: Any, *static: Any) -> list[Any]:
        x = tensors[0]
        how = _functions.layout(norm(static), x.shape)
        stats = [x.new_empty(how.stats, dtype=torch.float64) for _ in range(saved_count)]
        return [torch.empty_like(x), *stats]

    def backward(dy: Any, tensors: Any, saved: Any, *static: Any) -> list[Any]:
        stats = tensors[3:] if constants else saved[:2]
        found = norm(static).backward(_array(dy), *map(_array, tensors[:3]), *map(_array, stats))
        return [None if value is None else torch.from_numpy(np.ascontiguousarray(value)) for value in found]

    def formula(tensors: Any, *static: Any) -> Any:
        return norm(static).formula(*tensors, activations=_HOST_ACTIVATIONS)

    constants, training = name == "batch_norm_inference", operator != ""
    saved_count = 0 if constants else 3 if training else 1 if name == "rms_norm" else 2
    tensors = "Tensor x, Tensor? gamma, Tensor? beta" + (", Tensor mean_, Tensor var_" if constants else "")
    static = "float eps, int axis, int? groups, str? activation"
    return _Formula(operator or name, tensors, static, forward, fake, backward, formula, saved_count)


_NORMALIZATIONS = {name: _normalization(name) for name in _functions.NORMALIZATIONS}


def _normalize(norm: _functions.Norm, x: Any, *tensors: Any) -> Any:
    operator = _NORMALIZATIONS[norm.name]
    return operator(_checked(x), *tensors, norm.eps, norm.axis, norm.groups, norm.activation)


batch_norm, batch_norm_inference, *_other_normalizations = _functions.normalizations(_normalize)
_functions.publish(
    globals(),
    *map(_unary, _functions.ELEMENTWISE.values()),
    _unary(_functions.SOFTMAX["softmax"], _softmax_slope),
    _unary(_functions.SOFTMAX["log_softmax"], _log_softmax_slope),
    batch_norm,
    batch_norm_inference,
    *_other_normalizations,
)

_batch_norm_training = _normalization("batch_norm", "batch_norm_training").forward


class _BatchNorm:
    """What BatchNorm1d and BatchNorm2d replace of torch.nn's: forward alone. Parameters and buffers are theirs."""

    def forward(self: Any, x: Any) -> Any:
        self._check_input_dim(x)
        _refuse_tangents(self.weight, self.bias)
        if not self.training and self.running_mean is not None:
            return batch_norm_inference(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        count = x.numel() // x.shape[1]
        if count == 1:
            raise ValueError(
                f"x of shape {tuple(x.shape)} has one value a channel, which has no unbiased variance; "
                "in training batch norm needs more than one: give more samples, or call eval() first"
            )
        if self.running_mean is None or not self.track_running_stats:
            return batch_norm(x, self.weight, self.bias, eps=self.eps)
        y, mean, _, var = _batch_norm_training(_checked(x), self.weight, self.bias, self.eps, 1, None, None)
        self._track(mean.detach(), var.detach(), count)
        return y

    @torch.no_grad()
    def _track(self: Any, mean: Any, var: Any, count: int) -> None:
        """Feed the running statistics: momentum is the share of the new value, None the mean of all batches so far."""
        share = 0.0 if self.momentum is None else self.momentum  # as torch where there is no count of batches
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                share = 1.0 / float(self.num_batches_tracked)
        self.running_mean.copy_((1 - share) * self.running_mean + share * mean)
        self.running_var.copy_((1 - share) * self.running_var + share * count / (count - 1) * var)


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """torch.nn.BatchNorm1d on fastnn's kernels, for CPU tensors: same arguments, state_dict and running statistics."""


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """torch.nn.BatchNorm2d on fastnn's kernels, for CPU tensors: same arguments, state_dict and running statistics."""
