"""ReLU units that no example activates any more: how they come about, and that leaky ReLU revives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastnn.lecture import figures
from fastnn.lecture.experiment import Check, Context, Figure, Result, Table, outcome, percent
from fastnn.lecture.layers import Activation, Array
from fastnn.lecture.network import Network, train

NAME = "dead-relu"
TITLE = "Dead ReLUs"
CLAIM = (
    "A ReLU unit that is negative for every example gets no gradient and never learns again. A learning rate that is "
    "too high or a bad bias kills units; leaky ReLU lets them come back."
)
WIDTH = 100
BIASES = (-2.0, 0.0, 0.1)
RATES = (0.01, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1.0)


@dataclass(frozen=True)
class Outcome:
    born_dead: float
    dead: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Revival:
    # share of the units that are negative for every example, before training and after each epoch
    inactive: list[float]
    accuracy: float


# what is tried on the knocked-out layer: its name in tables, activation, parameters, colour
REVIVALS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("ReLU", "relu", {}, figures.GREEN),
    ("leaky ReLU, slope 0.01", "leaky_relu", {"negative_slope": 0.01}, figures.PURPLE),
    ("leaky ReLU, slope 0.1", "leaky_relu", {"negative_slope": 0.1}, figures.ORANGE),
)


def run(context: Context) -> Result:
    rates: tuple[float, ...] = context.pick(RATES, (0.01, 1.0))
    cases = [("relu", bias, rate) for bias in BIASES for rate in rates] + [("leaky_relu", 0.0, rate) for rate in rates]
    outcomes = {
        case: _train(context, *case)
        for case in context.track(cases, lambda case: f"{case[0]}, bias {case[1]:g}, rate {case[2]:g}")
    }
    revived = {label: _revive(context, activation, **params) for label, activation, params, _ in REVIVALS}
    slow, fast = rates[0], rates[-1]
    low, high = outcomes["relu", 0.0, slow].dead, outcomes["relu", 0.0, fast].dead
    stuck, back = revived["ReLU"], revived["leaky ReLU, slope 0.01"]
    leaky = max(outcomes["leaky_relu", 0.0, rate].dead for rate in rates)
    checks = (
        Check(
            "few units are dead after training at the lowest rate, most at the highest",
            f"{percent(low)} at {slow:g}, {percent(high)} at {fast:g}",
            low < 0.05 and high > 0.5,
        ),
        Check(
            f"a bias of {BIASES[0]:g} leaves units dead before training starts, one of 0 or {BIASES[-1]:g} does not",
            ", ".join(f"{percent(outcomes['relu', bias, slow].born_dead)} at {bias:g}" for bias in BIASES),
            outcomes["relu", BIASES[0], slow].born_dead > 0.1
            and all(outcomes["relu", bias, slow].born_dead < 0.05 for bias in BIASES[1:]),
        ),
        Check(
            "a ReLU layer that no example activates never learns",
            f"{percent(stuck.inactive[0])} dead before training, {percent(stuck.inactive[-1])} after; "
            f"accuracy {percent(stuck.accuracy)}",
            stuck.inactive[0] == stuck.inactive[-1] == 1.0 and stuck.accuracy < 0.2,
        ),
        Check(
            "the same layer with leaky ReLUs, slope 0.01, comes back",
            f"{percent(back.inactive[0])} inactive before training, {percent(back.inactive[-1])} after; "
            f"accuracy {percent(back.accuracy)}",
            back.inactive[-1] < 0.8 and back.accuracy > 2 * stuck.accuracy,
        ),
        Check("no leaky unit is ever without gradient", f"{percent(leaky)} at any of these rates", leaky == 0.0),
    )
    table = Table(
        "Units of the second hidden layer without gradient for any training example",
        ("learning rate", *(f"ReLU, bias {bias:g}" for bias in BIASES), "leaky ReLU"),
        tuple(
            (
                f"{rate:g}",
                *(_cell(outcomes["relu", bias, rate]) for bias in BIASES),
                _cell(outcomes["leaky_relu", 0.0, rate]),
            )
            for rate in rates
        ),
        "In brackets the accuracy on test images.",
    )
    return Result(
        NAME,
        TITLE,
        CLAIM,
        context.backend.__name__,
        checks,
        (table, _revival_table(revived)),
        (_rate_figure(outcomes, rates), _revival_figure(revived)),
        (
            f"Two hidden layers of {WIDTH} units on {context.data.name}, {_epochs(context)} epochs of SGD with "
            "momentum 0.9. The revival: one hidden layer whose biases are so low that no training example activates "
            f"any unit, trained at {_revival_rate(context):.2g}. In deeper layers a dead ReLU can also come back, "
            "when the layer below it moves.",
        ),
    )


def _epochs(context: Context) -> int:
    return context.pick(5, 2)


def _network(context: Context, activation: str, bias: float) -> Network:
    data = context.data
    sizes = [data.features, WIDTH, WIDTH, data.classes]
    return Network.mlp(sizes, context.backend, activation=activation, bias=bias, rng=context.rng("dead-relu weights"))


def _dead(network: Network, x: Array) -> float:
    """Share of the second hidden layer's units whose activation passes no gradient for any of the examples."""
    hidden = [i for i, layer in enumerate(network.layers) if isinstance(layer, Activation)][1]
    y = network.outputs(x)[hidden]
    passed = network.layers[hidden].backward(np.ones_like(y))
    return float(network.backend.diagnostics.dead_units(passed).mean())


def _train(context: Context, activation: str, bias: float, rate: float) -> Outcome:
    data = context.data
    x, test_x = data.standardized()
    network = _network(context, activation, bias)
    born_dead = _dead(network, x)
    history = train(network, x, data.labels, epochs=_epochs(context), lr=rate, rng=context.rng("dead-relu order"))
    return Outcome(born_dead, _dead(network, x), history.final(), network.accuracy(test_x, data.test_labels))


def _revival_rate(context: Context) -> float:
    """0.1 for the digits, and less for more inputs: a step moves a unit in proportion to their number."""
    return 0.1 * 64 / context.data.features


def _revive(context: Context, activation: str, **params: Any) -> Revival:
    """Train a network whose only hidden layer has been knocked out: its biases just silence it for every example."""
    data = context.data
    x, test_x = data.standardized()
    network = Network.mlp(
        [data.features, WIDTH, data.classes],
        context.backend,
        activation=activation,
        rng=context.rng("dead-relu revival weights"),
        **params,
    )
    rate = _revival_rate(context)
    first = network.dense()[0]
    first.b -= first.forward(x).max(axis=0) + 0.1
    inactive = []
    for epoch in range(context.pick(10, 6) + 1):
        if epoch:
            train(network, x, data.labels, epochs=1, lr=rate, rng=context.rng(f"dead-relu revival {epoch}"))
        # Not "<= 0", which a network of NaN would pass for active.
        inactive.append(float(1 - (first.forward(x) > 0).any(axis=0).mean()))
    return Revival(inactive, network.accuracy(test_x, data.test_labels))


def _cell(case: Outcome) -> str:
    return f"{percent(case.dead)} ({outcome(case.loss, case.accuracy)})"


def _rate_figure(outcomes: dict[tuple[str, float, float], Outcome], rates: tuple[float, ...]) -> Figure:
    figure, axes = figures.panels()
    colors = dict(zip(BIASES, (figures.RED, figures.GREEN, figures.TEAL), strict=True))
    for bias in BIASES:
        dead = [100 * outcomes["relu", bias, rate].dead for rate in rates]
        axes.semilogx(rates, dead, "o-", color=colors[bias], label=f"ReLU, bias {bias:g}")
    dead = [100 * outcomes["leaky_relu", 0.0, rate].dead for rate in rates]
    axes.semilogx(rates, dead, "o-", color=figures.PURPLE, label="leaky ReLU")
    axes.set_xticks(rates, [f"{rate:g}" if rate not in (0.15, 0.25) else "" for rate in rates])
    axes.set_xticks([], minor=True)
    axes.set(title="Dead units after training", xlabel="learning rate", ylabel="dead units (%)", ylim=(-4, 104))
    axes.legend()
    return Figure("rate", "Share of the second layer's units that no training example activates.", figures.png(figure))


def _revival_table(revived: dict[str, Revival]) -> Table:
    return Table(
        "A layer that no training example activates",
        ("function", "inactive before", f"after {len(revived['ReLU'].inactive) - 1} epochs", "test accuracy"),
        tuple(
            (name, percent(case.inactive[0]), percent(case.inactive[-1]), percent(case.accuracy))
            for name, case in revived.items()
        ),
    )


def _revival_figure(revived: dict[str, Revival]) -> Figure:
    figure, axes = figures.panels()
    for name, _, _, color in REVIVALS:
        shares = 100 * np.array(revived[name].inactive)
        axes.plot(range(len(shares)), shares, "o-", color=color, label=name)
    axes.set(title="A knocked-out layer in training", xlabel="epoch", ylabel="inactive units (%)", ylim=(-4, 104))
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.93))
    caption = "ReLU passes no gradient, so nothing changes; even a slope of 0.01 is enough to come back."
    return Figure("revival", caption, figures.png(figure))
