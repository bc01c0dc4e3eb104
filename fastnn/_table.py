"""The one table of elementwise activations: a row each, everything else follows from it.

setup.py generates the compiled loops and the public functions from these rows; the parity tests, the accuracy
tests, the benchmarks and the documentation iterate over them. The module imports nothing but the standard
library, because setup.py reads it before fastnn exists.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Param:
    """A scalar parameter: its name, its default and what a value must satisfy beside being finite."""

    name: str
    default: float
    must_be: str = "finite"  # "finite", "positive", "nonzero" or "nonnegative"


@dataclass(frozen=True)
class Activation:
    """One kernel pair: ``name(x, *params)`` and ``name_backward(dy, saved, *params)`` in src/activations.pxd."""

    name: str
    saved: str  # what backward is given: "x" (the input) or "y" (the output); relu takes either
    formula: str
    derivative: str
    params: tuple[Param, ...] = ()
    # Time of an element, forward and backward, in units of about 0.06 ns: decides from which size on a second thread
    # pays, and whether large results bypass the caches.
    costs: tuple[int, int] = (1, 2)
    source: str = ""  # where the function was introduced
    bound32: tuple[float, float] = (1.5, 2.0)  # promised error in ULP, forward and backward, float32 ...
    bound64: tuple[float, float] = (2.0, 2.0)  # ... and float64
    two_steps: tuple[str, ...] = ()  # the loops that take two steps (see elementary.h): "forward float" and so on
    at_defaults: bool = False  # whether activations.pxd has a faster pair name_at_defaults, name_at_defaults_backward
    public: str = ""  # the public function that reaches this kernel, where its name is another (gelu's variants) ...
    options: tuple[tuple[str, str], ...] = ()  # ... and with which arguments

    @property
    def function(self) -> str:
        """Name of the public function that runs this kernel."""
        return self.public or self.name


ACTIVATIONS: tuple[Activation, ...] = (
    Activation(
        "sigmoid",
        "y",
        "1 / (1 + exp(-x))",
        "y * (1 - y)",
        costs=(5, 2),
        two_steps=("forward float",),
        source="the logistic function; CS231n, Training Neural Networks I",
    ),
    Activation(
        "tanh",
        "y",
        "(exp(x) - exp(-x)) / (exp(x) + exp(-x))",
        "1 - y**2",
        costs=(5, 2),
        source="LeCun et al., Efficient BackProp, 1998",
    ),
    Activation(
        "relu",
        "y",
        "max(x, 0)",
        "1 where y > 0, else 0",
        source="Nair and Hinton, Rectified linear units improve restricted Boltzmann machines, 2010",
    ),
    Activation(
        "leaky_relu",
        "x",
        "x where x > 0, else negative_slope * x",
        "1 where x > 0, else negative_slope",
        (Param("negative_slope", 0.01),),
        source="Maas et al., Rectifier nonlinearities improve neural network acoustic models, 2013",
    ),
    Activation(
        "relu6",
        "x",
        "min(max(x, 0), 6)",
        "1 where 0 < x < 6, else 0",
        source="Krizhevsky, Convolutional deep belief networks on CIFAR-10, 2010",
    ),
    Activation(
        "hardtanh",
        "x",
        "min(max(x, min_val), max_val)",
        "1 where min_val < x < max_val, else 0",
        (Param("min_val", -1.0), Param("max_val", 1.0)),
        source="Collobert, Large scale machine learning, 2004; hardtanh(alpha*x+beta, 0, 1) is ONNX's HardSigmoid",
    ),
    Activation(
        "hardsigmoid",
        "x",
        "min(max(x + 3, 0), 6) / 6",
        "1/6 where -3 < x < 3, else 0",
        source="Howard et al., Searching for MobileNetV3, 2019; ONNX's other constants: hardtanh(alpha*x+beta, 0, 1)",
    ),
    Activation(
        "hardswish",
        "x",
        "x * min(max(x + 3, 0), 6) / 6",
        "0 where x <= -3, 1 where x >= 3, else (2*x + 3) / 6",
        source="Howard et al., Searching for MobileNetV3, 2019",
    ),
    Activation(
        "elu",
        "x",
        "x where x > 0, else alpha * (exp(x) - 1)",
        "1 where x > 0, else alpha * exp(x)",
        (Param("alpha", 1.0),),
        costs=(5, 5),
        source="Clevert et al., Fast and accurate deep network learning by exponential linear units, 2015",
    ),
    Activation(
        "celu",
        "x",
        "x where x > 0, else alpha * (exp(x / alpha) - 1)",
        "1 where x >= 0, else exp(x / alpha)",
        (Param("alpha", 1.0, "nonzero"),),
        costs=(5, 5),
        at_defaults=True,
        source="Barron, Continuously differentiable exponential linear units, 2017",
    ),
    Activation(
        "selu",
        "x",
        "scale * (x where x > 0, else alpha * (exp(x) - 1)), alpha = 1.67326..., scale = 1.05070...",
        "scale where x > 0, else scale * alpha * exp(x)",
        costs=(5, 5),
        source="Klambauer et al., Self-normalizing neural networks, 2017; for ONNX's other constants scale elu",
    ),
    Activation(
        "gelu",
        "x",
        "x * Phi(x), Phi the normal distribution function",
        "Phi(x) + x * phi(x)",
        costs=(15, 12),
        source="Hendrycks and Gimpel, Gaussian error linear units, 2016",
    ),
    Activation(
        "gelu_tanh",
        "x",
        "x / 2 * (1 + tanh(u)), u = sqrt(2/pi) * (x + 0.044715 * x**3)",
        "(1 + tanh(u)) / 2 + x / 2 * (1 - tanh(u)**2) * du/dx",
        costs=(11, 17),
        two_steps=("forward float",),
        public="gelu",
        options=(("approximate", "tanh"),),
        source="Hendrycks and Gimpel, Gaussian error linear units, 2016",
    ),
    Activation(
        "silu",
        "x",
        "x / (1 + exp(-x))",
        "s * (1 + x * (1 - s)), s = sigmoid(x)",
        costs=(6, 8),
        two_steps=("forward float", "backward float"),
        source="Elfwing et al., Sigmoid-weighted linear units for neural network function approximation, 2017",
    ),
    Activation(
        "mish",
        "x",
        "x * tanh(log1p(exp(x)))",
        "t + x * (1 - t**2) * sigmoid(x), t = tanh(log1p(exp(x)))",
        costs=(8, 15),
        two_steps=("forward float",),
        source="Misra, Mish: a self regularized non-monotonic activation function, 2019",
    ),
    Activation(
        "softsign",
        "x",
        "x / (1 + abs(x))",
        "1 / (1 + abs(x))**2",
        costs=(3, 3),
        source="Bergstra et al., Quadratic polynomials learn better image features, 2009",
    ),
    Activation(
        "log_sigmoid",
        "x",
        "-log1p(exp(-x))",
        "1 / (1 + exp(x))",
        costs=(11, 5),
        two_steps=("backward double",),
        source="the logarithm of the logistic function",
    ),
    Activation(
        "softplus",
        "x",
        "log1p(exp(beta * x)) / beta",
        "1 / (1 + exp(-beta * x))",
        (Param("beta", 1.0, "positive"),),
        costs=(11, 5),
        at_defaults=True,
        source="Dugas et al., Incorporating second-order functional knowledge for better option pricing, 2000",
    ),
)

BY_NAME = {row.name: row for row in ACTIVATIONS}
