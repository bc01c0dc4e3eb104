"""The experiment of the lecture: ten layers of 500 units, initialized in different ways, on real data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastnn.lecture import figures
from fastnn.lecture.experiment import Check, Context, Figure, Result, Table, percent, short
from fastnn.lecture.layers import Activation, Array
from fastnn.lecture.network import Network, train

NAME = "initialization"
TITLE = "Weight initialization: ten layers of 500 units"
CLAIM = (
    "Equal weights stay equal. Small random weights are fine for a small network, but in a deep one all outputs and "
    "gradients shrink to zero; large ones saturate every unit. Xavier's variance keeps tanh's outputs alive, but with "
    "ReLU it halves from layer to layer; He's factor of two mends that."
)
DEPTH, WIDTH = 10, 500
BINS = 50


@dataclass(frozen=True)
class Scheme:
    """A way to make the first weights."""

    name: str
    activation: str
    weights: Callable[[Context, tuple[int, int], np.random.Generator], Array]
    color: str
    data_driven: bool = False  # finished by lsuv, which looks at the data


def _normal(std: float) -> Callable[[Context, tuple[int, int], np.random.Generator], Array]:
    return lambda context, shape, rng: context.backend.init.normal(shape, std=std, rng=rng)


def _xavier(context: Context, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    return context.backend.init.xavier_normal(shape, rng=rng)


def _he(context: Context, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    return context.backend.init.he_normal(shape, rng=rng)


SCHEMES = (
    Scheme("constant", "tanh", lambda context, shape, rng: context.backend.init.constant(shape, 0.01), figures.GREY),
    Scheme("small (0.01)", "tanh", _normal(0.01), figures.ORANGE),
    Scheme("large (1.0)", "tanh", _normal(1.0), figures.RED),
    Scheme("Xavier", "tanh", _xavier, figures.BLUE),
    Scheme("Xavier", "relu", _xavier, figures.PURPLE),
    Scheme("He", "relu", _he, figures.GREEN),
    Scheme("LSUV", "relu", _he, figures.TEAL, data_driven=True),
)


@dataclass(frozen=True)
class Layers:
    """Layer by layer: the outputs, and the deviations of outputs, sums before the activation, and gradients."""

    histograms: list[tuple[Array, Array]]
    mean: Array
    output: Array
    before: Array
    gradient: Array
    saturated: float
    accuracy: float


def run(context: Context) -> Result:
    width = context.pick(WIDTH, 100)
    facts = {}
    for scheme in context.track(SCHEMES, _label):
        facts[_label(scheme)] = _measure(context, scheme, width)
    symmetry = _symmetry(context, width)
    shallow = _shallow_accuracy(context)
    return Result(
        NAME,
        TITLE,
        CLAIM,
        context.backend.__name__,
        _checks(facts, symmetry, shallow, 1 / context.data.classes),
        (_table(facts),),
        (_histogram_figure(facts), *_deviation_figures(facts)),
        (
            f"{DEPTH} layers of {width} units on {context.data.name} (unit variance over all pixels). Gradients: "
            f"random ones of unit variance sent back from the last layer. Accuracy: after {_epochs(context)} epochs of "
            "SGD with momentum 0.9 at the better of two rates, 0.01 and 0.001.",
        ),
    )


def _label(scheme: Scheme) -> str:
    return f"{scheme.name}, {'ReLU' if scheme.activation == 'relu' else scheme.activation}"


def _epochs(context: Context) -> int:
    return context.pick(3, 2)


def _network(context: Context, scheme: Scheme, width: int, depth: int = DEPTH) -> Network:
    data = context.data
    network = Network.mlp(
        [data.features, *[width] * depth, data.classes],
        context.backend,
        activation=scheme.activation,
        init=lambda shape, rng: scheme.weights(context, shape, rng),
        rng=context.rng("initialization weights"),
    )
    if scheme.data_driven:
        context.backend.init.lsuv(network, data.standardized()[0][:256], rng=context.rng("initialization lsuv"))
    return network


def _measure(context: Context, scheme: Scheme, width: int) -> Layers:
    data = context.data
    x, test_x = data.standardized()
    network = _network(context, scheme, width)
    outputs = network.outputs(x[:500])
    active = [i for i, layer in enumerate(network.layers) if isinstance(layer, Activation)]
    limits = (-1.0, 1.0) if scheme.activation == "tanh" else (0.0, 3.0)
    diagnostics = context.backend.diagnostics
    stats = [diagnostics.activation_stats(outputs[i], scheme.activation, bins=BINS, range=limits) for i in active]
    dy = context.rng("initialization gradient").standard_normal(outputs[active[-1]].shape).astype(np.float32)
    gradient = []
    for i in range(active[-1], -1, -1):
        dy = network.layers[i].backward(dy)
        if i in active:
            gradient.append(float(dy.std(dtype=np.float64)))
    accuracies = []
    for rate in (0.01, 0.001):
        trained = _network(context, scheme, width)
        order = context.rng("initialization order")
        train(trained, x, data.labels, epochs=_epochs(context), lr=rate, rng=order)
        accuracies.append(trained.accuracy(test_x, data.test_labels))
    return Layers(
        [(counts / outputs[active[0]].size, edges) for counts, edges in (s.histogram for s in stats)],
        np.array([s.mean for s in stats]),
        np.array([s.std for s in stats]),
        np.array([outputs[i - 1].std(dtype=np.float64) for i in active]),
        np.array(gradient[::-1]),
        stats[-1].saturated,
        max(accuracies),
    )


def _symmetry(context: Context, width: int) -> dict[str, tuple[float, float, float]]:
    """How much the units of a layer differ after training from equal and from small random weights.

    The largest difference between two units in output, gradient and weights, each over the largest value.
    """
    data = context.data
    x = data.standardized()[0]
    spread = {}
    for scheme in SCHEMES[:2]:
        network = _network(context, scheme, width, depth=2)
        train(network, x[:640], data.labels[:640], epochs=1, lr=0.1, rng=context.rng("initialization symmetry"))
        second = network.dense()[1]
        output = network.outputs(x[:64], training=True)[3]
        network.loss(x[:64], data.labels[:64])
        values = (output, second.dW, second.W)
        spread[scheme.name] = tuple(float(np.ptp(v, axis=1).max() / max(np.abs(v).max(), 1e-30)) for v in values)
    return spread  # type: ignore[return-value]


def _shallow_accuracy(context: Context) -> float:
    """Test accuracy of a network of one hidden layer that starts from small weights."""
    data = context.data
    x, test_x = data.standardized()
    network = _network(context, SCHEMES[1], 100, depth=1)
    train(network, x, data.labels, epochs=_epochs(context), lr=0.1, rng=context.rng("initialization shallow"))
    return network.accuracy(test_x, data.test_labels)


def _checks(
    facts: dict[str, Layers], symmetry: dict[str, tuple[float, float, float]], shallow: float, chance: float
) -> tuple[Check, ...]:
    def kept(name: str, what: str = "output") -> float:
        values = getattr(facts[name], what)
        return float(values[-1] / values[0])

    equal, mixed = symmetry["constant"], symmetry["small (0.01)"]
    small, large = facts["small (0.01), tanh"], facts["large (1.0), tanh"]
    xavier, he = kept("Xavier, tanh"), kept("He, ReLU")
    flow = small.gradient[0] / small.gradient[-1]
    return (
        Check(
            "equal weights: after training all units of a layer have the same output, gradient and weights",
            f"differences {', '.join(map(short, equal))} of the largest; "
            f"from random weights {', '.join(map(short, mixed))}",
            max(equal) < 1e-4 < min(mixed),
        ),
        Check(
            "small weights, tanh: outputs and gradients vanish in the deep network",
            f"deviation {short(small.output[0])} in layer 1, {short(small.output[-1])} in layer {DEPTH}; "
            f"gradient {short(flow)} of the top's",
            kept("small (0.01), tanh") < 0.01 and flow < 0.01,
        ),
        Check(
            "small weights train a small network, not the deep one",
            f"test accuracy {percent(shallow)} against {percent(small.accuracy)}",
            shallow > 2 * chance and small.accuracy < 0.5 * shallow,
        ),
        Check(
            "large weights, tanh: nearly all units of the last layer are saturated",
            percent(large.saturated),
            large.saturated > 0.5,
        ),
        Check(
            "Xavier keeps tanh's outputs alive to the last layer",
            f"{short(xavier)} of the first layer's deviation",
            0.2 < xavier < 2,
        ),
        Check(
            "Xavier with ReLU loses half of the variance a layer, He keeps it",
            f"{short(kept('Xavier, ReLU', 'before') ** (2 / (DEPTH - 1)))} and "
            f"{short(kept('He, ReLU', 'before') ** (2 / (DEPTH - 1)))} of the variance a layer",
            abs(kept("Xavier, ReLU", "before") ** (2 / (DEPTH - 1)) - 0.5) < 0.12 and 0.4 < he < 2.5,
        ),
    )


def _table(facts: dict[str, Layers]) -> Table:
    return Table(
        f"Outputs and gradients from layer 1 to layer {DEPTH}",
        ("weights", "mean", "deviation", "gradient", "saturated or 0", "accuracy"),
        tuple(
            (
                name,
                f"{short(fact.mean[0])} to {short(fact.mean[-1])}",
                f"{short(fact.output[0])} to {short(fact.output[-1])}",
                f"{short(fact.gradient[0])} to {short(fact.gradient[-1])}",
                percent(fact.saturated),
                percent(fact.accuracy),
            )
            for name, fact in facts.items()
        ),
        "Gradient: deviation of the gradient before the activation. Saturated: of the last layer's tanh outputs; "
        "with ReLU the share of zeros.",
    )


def _histogram_figure(facts: dict[str, Layers]) -> Figure:
    """A row a scheme; in it the layers' histograms side by side, each in its own slot of the axis."""
    figure, rows = figures.panels(len(facts), 1, width=10.5, height=1.05 * len(facts) + 0.3, sharex=True)
    for axes, scheme, fact in zip(rows, SCHEMES, facts.values(), strict=True):
        for layer, (shares, edges) in enumerate(fact.histograms, 1):
            slot = layer - 0.45 + 0.9 * (edges - edges[0]) / (edges[-1] - edges[0])
            axes.stairs(100 * shares, slot, fill=True, color=scheme.color)
        tanh = scheme.activation == "tanh"
        axes.set_ylim(0, 10 if tanh else 6)
        axes.set_yticks([])
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        label = f"{scheme.name}\n{'tanh, -1 to 1' if tanh else 'ReLU, 0 to 3'}"
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    rows[-1].set_xticks(range(1, DEPTH + 1), [f"layer {layer}" for layer in range(1, DEPTH + 1)])
    rows[-1].set_xlim(0.5, DEPTH + 0.5)
    return Figure(
        "histograms",
        f"Every layer's outputs in {BINS} bins; a bin with more than 10 % of them (ReLU: 6 %) is cut off there.",
        figures.png(figure, dpi=130),
        wide=True,
    )


def _deviation_figures(facts: dict[str, Layers]) -> tuple[Figure, Figure]:
    drawn = []
    for what, title, axis_label in (
        ("before", "The sums z before the activation", "deviation of z"),
        ("gradient", "The gradients of z", "deviation of the gradient"),
    ):
        figure, axes = figures.panels(height=4.0)
        for scheme in SCHEMES[1:]:
            values = getattr(facts[_label(scheme)], what)
            axes.semilogy(range(1, DEPTH + 1), values, "o-", markersize=4, color=scheme.color, label=_label(scheme))
        axes.set(title=title, xlabel="layer", ylabel=axis_label)
        axes.set_xticks(range(1, DEPTH + 1))
        figures.legend_below(axes)
        drawn.append(figures.png(figure))
    return (
        Figure("forward", "What Xavier reasons from: the variance of z should be the same in every layer.", drawn[0]),
        Figure("backward", "The same for the gradients, on their way from the right to the left.", drawn[1]),
    )
