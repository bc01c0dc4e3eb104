"""The one table of elementwise activations: a row each, everything else follows from it.

setup.py generates the compiled loops and the public functions from these rows; the parity tests, the accuracy
tests, the benchmarks and the documentation iterate over them. The module imports nothing but the standard
library, because setup.py reads it before NumPy or fastnn exist.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Param:
    """A scalar parameter: its name, its default and what a value must satisfy beside being finite."""

    name: str
    default: float
    must_be: str = "finite"  # "finite", "positive" or "nonzero"


@dataclass(frozen=True)
class Activation:
    """One kernel pair: ``name(x, *params)`` and ``name_backward(dy, saved, *params)`` in src/activations.pxd."""

    name: str
    saved: str  # what backward is given: "x" (the input) or "y" (the output); relu takes either
    formula: str
    derivative: str
    params: tuple[Param, ...] = ()
    cost: int = 1  # relative cost an element; decides from which size on a second thread pays
    public: str = ""  # the public function that reaches this kernel, where its name is another (gelu's variants)

    @property
    def function(self) -> str:
        """Name of the public function that runs this kernel."""
        return self.public or self.name


ACTIVATIONS: tuple[Activation, ...] = (
    Activation("sigmoid", "y", "1 / (1 + exp(-x))", "y * (1 - y)", cost=4),
    Activation("tanh", "y", "(exp(x) - exp(-x)) / (exp(x) + exp(-x))", "1 - y**2", cost=4),
    Activation("relu", "y", "max(x, 0)", "1 where y > 0, else 0"),
    Activation(
        "leaky_relu",
        "x",
        "x where x > 0, else negative_slope * x",
        "1 where x > 0, else negative_slope",
        (Param("negative_slope", 0.01),),
    ),
    Activation("relu6", "x", "min(max(x, 0), 6)", "1 where 0 < x < 6, else 0"),
    Activation(
        "hardtanh",
        "x",
        "min(max(x, min_val), max_val)",
        "1 where min_val < x < max_val, else 0",
        (Param("min_val", -1.0), Param("max_val", 1.0)),
    ),
    Activation("hardsigmoid", "x", "min(max(x + 3, 0), 6) / 6", "1/6 where -3 < x < 3, else 0"),
    Activation(
        "hardswish", "x", "x * min(max(x + 3, 0), 6) / 6", "0 where x <= -3, 1 where x >= 3, else (2*x + 3) / 6"
    ),
    Activation(
        "elu",
        "x",
        "x where x > 0, else alpha * (exp(x) - 1)",
        "1 where x > 0, else alpha * exp(x)",
        (Param("alpha", 1.0),),
        cost=4,
    ),
    Activation(
        "celu",
        "x",
        "x where x > 0, else alpha * (exp(x / alpha) - 1)",
        "1 where x >= 0, else exp(x / alpha)",
        (Param("alpha", 1.0, "nonzero"),),
        cost=4,
    ),
    Activation(
        "selu",
        "x",
        "scale * (x where x > 0, else alpha * (exp(x) - 1)), alpha = 1.67326..., scale = 1.05070...",
        "scale where x > 0, else scale * alpha * exp(x)",
        cost=4,
    ),
    Activation("gelu", "x", "x * Phi(x), Phi the normal distribution function", "Phi(x) + x * phi(x)", cost=8),
    Activation(
        "gelu_tanh",
        "x",
        "x / 2 * (1 + tanh(u)), u = sqrt(2/pi) * (x + 0.044715 * x**3)",
        "(1 + tanh(u)) / 2 + x / 2 * (1 - tanh(u)**2) * du/dx",
        cost=8,
        public="gelu",
    ),
    Activation("silu", "x", "x / (1 + exp(-x))", "s * (1 + x * (1 - s)), s = sigmoid(x)", cost=4),
    Activation(
        "mish", "x", "x * tanh(log1p(exp(x)))", "t + x * (1 - t**2) * sigmoid(x), t = tanh(log1p(exp(x)))", cost=6
    ),
    Activation("softsign", "x", "x / (1 + abs(x))", "1 / (1 + abs(x))**2", cost=2),
    Activation("log_sigmoid", "x", "-log1p(exp(-x))", "1 / (1 + exp(x))", cost=6),
    Activation(
        "softplus",
        "x",
        "log1p(exp(beta * x)) / beta",
        "1 / (1 + exp(-beta * x))",
        (Param("beta", 1.0, "positive"),),
        cost=6,
    ),
)

BY_NAME = {row.name: row for row in ACTIVATIONS}
