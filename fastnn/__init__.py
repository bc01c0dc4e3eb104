"""fastnn: fast, accurate and reproducible CPU kernels for neural-network activations and normalization.

Activations and normalizations take array-likes and return NumPy arrays. Their gradients are `<name>_backward`, beside
them (cross_entropy returns its own). All have a twin in plain NumPy in `fastnn.reference`; what has no kernel is the
same there. The whole interface:

    activations    sigmoid tanh relu leaky_relu prelu relu6 hardtanh hardsigmoid hardswish elu celu selu gelu silu mish
                   softsign log_sigmoid softplus softmax log_softmax maxout cross_entropy
    normalization  batch_norm batch_norm_inference batch_stats layer_norm rms_norm group_norm instance_norm BatchNorm
    init           zeros constant normal uniform xavier_* he_* lecun_normal orthogonal lsuv fans
    preprocessing  zero_center standardize Standardizer PCA Whitener Moments NotFittedError
    diagnostics    saturation dead_units activation_stats gradient_flow gradient_check
                   ActivationStats GradientStats
    runtime        isa available_isas use_isa num_threads set_num_threads threads info

Imported on demand: `fastnn.reference`, `fastnn.backends`, `fastnn.lecture`, `fastnn.bench`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

try:
    import_module("fastnn._core")  # `from fastnn import` would suspect a circular import
except ImportError as error:
    raise ImportError(
        f"the compiled part of fastnn in {__path__[0]} cannot be loaded ({error}); where it is missing or broken, "
        'build it in a source checkout with "pip install -e .", or start Python elsewhere to use an installed fastnn'
    ) from error

from fastnn import _core as _core
from fastnn import activations, diagnostics, init, normalization, preprocessing, runtime
from fastnn.activations import *  # noqa: F403
from fastnn.normalization import *  # noqa: F403

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastnn import backends as backends
    from fastnn import bench as bench
    from fastnn import lecture as lecture
    from fastnn import reference as reference
else:
    _ON_DEMAND = ("backends", "bench", "lecture", "reference")

    def __getattr__(name):
        if name in _ON_DEMAND:
            return import_module(f"fastnn.{name}")
        raise AttributeError(f"module 'fastnn' has no attribute {name!r}")

    def __dir__():
        return [*__all__, "activations", "normalization", *_ON_DEMAND, "__version__"]


__all__ = ["diagnostics", "init", "preprocessing", "runtime", *activations.__all__, *normalization.__all__]
