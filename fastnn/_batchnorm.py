"""The class BatchNorm, shared by `fastnn.reference` and `fastnn`, which differ in the functions it calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastnn import _checks

Array = np.ndarray[Any, np.dtype[Any]]

_STATE = ("gamma", "beta", "running_mean", "running_var")


class BatchNorm:
    """Batch normalization as a layer: gamma, beta, their gradients, and running statistics for inference.

    Two conventions differ between frameworks; here they are:

    * Momentum. `decay` is the share of the old value that is kept,
      ``running = decay * running + (1 - decay) * batch``, as in CS231n, Keras and ONNX.
      PyTorch's momentum is the share of the new value: its momentum=0.1 is decay=0.9.
      A running mean starts at 0, a running variance at 1 (CS231n's assignment starts both at 0).
    * Variance. The batch is always normalized by the biased variance, sum((x - mean)**2) / n. The running variance is
      fed the same number; with unbiased_running_var=True it is fed sum((x - mean)**2) / (n - 1), as in PyTorch. That
      needs more than one value a channel: else `forward` raises ValueError.

    Parameters
    ----------
    num_features : number of channels C, the length of x along `axis`
    eps : added to the variance; finite and at least 0
    decay : share of the running statistics kept at each training step; 0 to 1
    unbiased_running_var : whether the running variance is fed the unbiased variance
    axis : channel axis of x; -1 for channels-last
    dtype : dtype of gamma, beta and their gradients: float16, float32 or float64

    Attributes
    ----------
    gamma, beta : arrays (C,), learned; start at 1 and 0
    dgamma, dbeta : arrays (C,), gradients left by the last `backward`; start at 0
    running_mean, running_var : float64 arrays (C,), as all statistics here are float64
    """

    # The functions that do the work, and `_normalize`: subclasses set them.
    _batch_norm_backward: Any
    _batch_norm_inference: Any

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        decay: float = 0.9,
        unbiased_running_var: bool = False,
        axis: int = 1,
        dtype: Any = np.float32,
    ) -> None:
        self.num_features = _checks.integer_param(num_features, "num_features", 1)
        self.eps = _checks.real_param(eps, "eps", "nonnegative")
        self.decay = _checks.real_param(decay, "decay", "share")
        if not isinstance(unbiased_running_var, bool | np.bool_):
            raise TypeError(f"unbiased_running_var must be True or False, not {unbiased_running_var!r}")
        self.unbiased_running_var = bool(unbiased_running_var)
        self.axis = _checks.integer_param(axis, "axis")
        self.dtype = _checks.float_dtype(dtype)
        shape = (self.num_features,)
        self.gamma: Array = np.ones(shape, self.dtype)
        self.beta: Array = np.zeros(shape, self.dtype)
        self.dgamma: Array = np.zeros(shape, self.dtype)
        self.dbeta: Array = np.zeros(shape, self.dtype)
        self.running_mean: Array = np.zeros(shape, np.float64)
        self.running_var: Array = np.ones(shape, np.float64)
        self._saved: tuple[Array, Array, Array] | None = None

    def __repr__(self) -> str:
        return (
            f"BatchNorm({self.num_features}, eps={self.eps}, decay={self.decay}, "
            f"unbiased_running_var={self.unbiased_running_var}, axis={self.axis}, dtype=np.{self.dtype})"
        )

    def forward(self, x: Any, training: bool = True) -> Array:
        """Normalize x by its own statistics and update the running ones, or, at inference, by the running ones.

        A training step keeps a reference to x for `backward`: do not overwrite x before. Inference keeps nothing and
        leaves what the last training step kept.
        """
        x = _checks.as_input(x)
        count = self._values_per_channel(x)
        if not training:
            return self._batch_norm_inference(
                x, self.running_mean, self.running_var, self.gamma, self.beta, eps=self.eps, axis=self.axis
            )
        if self.unbiased_running_var and count == 1:
            raise ValueError(
                f"x has one value a channel (shape {x.shape}), of which there is no unbiased variance; "
                "give more than one, or set unbiased_running_var=False"
            )
        with np.errstate(all="ignore"):
            y, mean, invstd, var = self._normalize(x)
            if self.unbiased_running_var:
                var = var * (count / (count - 1))
            for running, batch in ((self.running_mean, mean), (self.running_var, var)):
                running *= self.decay
                running += (1.0 - self.decay) * batch
        self._saved = x, mean, invstd
        return y

    def _values_per_channel(self, x: Array) -> int:
        _checks.check_ndim(x, 2)
        channels = x.shape[_checks.normalize_axis(self.axis, x.ndim)]
        if channels != self.num_features:
            raise ValueError(
                f"x has {channels} channels along axis {self.axis} (shape {x.shape}); "
                f"this BatchNorm has num_features = {self.num_features}"
            )
        return x.size // channels

    def _normalize(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """(y, mean, invstd, var) of a training batch."""
        raise NotImplementedError

    def backward(self, dy: Any) -> Array:
        """dx of the last training step; its gradients of gamma and beta are left in dgamma and dbeta.

        RuntimeError where there was no forward(x, training=True) before.
        """
        if self._saved is None:
            raise RuntimeError(
                "backward needs a training step before it: forward(x, training=True); inference keeps nothing"
            )
        dx, self.dgamma, self.dbeta = self._batch_norm_backward(dy, *self._saved, self.gamma, axis=self.axis)
        return dx

    def state_dict(self) -> dict[str, Array]:
        """Copies of gamma, beta, running_mean and running_var, by name."""
        return {name: getattr(self, name).copy() for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned. After an error nothing is changed.

        ValueError for other names or shapes, a negative running_var, and finite numbers that overflow this dtype.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict as state_dict returns it, not {type(state).__name__}")
        if set(state) != set(_STATE):
            raise ValueError(f"the state has the keys {sorted(map(str, state))}; it must have exactly {sorted(_STATE)}")
        loaded = {name: self._checked(name, state[name]) for name in _STATE}
        for name, array in loaded.items():
            getattr(self, name)[...] = array

    def _checked(self, name: str, value: Any) -> Array:
        given = _checks.channel_vector(value, self.num_features, name)
        with np.errstate(all="ignore"):
            array = given.astype(getattr(self, name).dtype)  # a copy: it may be an array of this object
        if not np.array_equal(np.isfinite(given), np.isfinite(array)):
            raise ValueError(f"{name} holds numbers that overflow {array.dtype}, the dtype of this BatchNorm")
        if name == "running_var" and np.any(array < 0):
            raise ValueError(f"running_var holds {array.min()}; a variance is at least 0")
        return array
