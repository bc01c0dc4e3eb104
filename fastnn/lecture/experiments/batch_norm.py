"""A deep network with and without batch normalization, from good and bad weights and at many learning rates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastnn.lecture import figures
from fastnn.lecture.experiment import Check, Context, Figure, Result, Table, outcome, percent, short
from fastnn.lecture.layers import Activation, Array
from fastnn.lecture.network import Initializer, Network, train

NAME = "batch-norm"
TITLE = "Batch normalization: a deep network that trains from anywhere"
CLAIM = (
    "With batch normalization a deep network depends much less on its first weights and allows higher learning rates; "
    "outputs and gradients neither vanish nor explode. At test time fixed statistics take the place of the batch's."
)
DEPTH, WIDTH = 8, 64
STARTS = ("small", "He", "large")
COLORS = {"small": figures.ORANGE, "He": figures.GREEN, "large": figures.RED}
RATES = (0.001, 0.01, 0.03, 0.1, 0.3)

Case = tuple[str, bool, float]  # first weights, with batch norm, learning rate


@dataclass(frozen=True)
class Outcome:
    network: Network
    losses: Array
    loss: float
    accuracy: float


def run(context: Context) -> Result:
    rates: tuple[float, ...] = context.pick(RATES, (0.01, 0.1))
    cases: list[Case] = [(start, normed, rate) for start in STARTS for normed in (False, True) for rate in rates]
    outcomes = {case: _train(context, case) for case in context.track(cases, _describe)}
    best = {
        (start, normed): max(rates, key=lambda rate: outcomes[start, normed, rate].accuracy)
        for start in STARTS
        for normed in (False, True)
    }
    layers = {(start, normed): _layers(context, start, normed) for start in STARTS for normed in (False, True)}
    modes = _modes(context, outcomes["He", True, best["He", True]].network)
    return Result(
        NAME,
        TITLE,
        CLAIM,
        context.backend.__name__,
        _checks(outcomes, best, layers, modes, rates),
        (_accuracy_table(outcomes, rates), _mode_table(modes)),
        (
            _loss_figure(outcomes, best, False),
            _loss_figure(outcomes, best, True),
            _layer_figure(layers, "output"),
            _layer_figure(layers, "gradient"),
        ),
        (
            f"{DEPTH} hidden layers of {WIDTH} ReLUs on {context.data.name}, {_epochs(context)} epochs of SGD with "
            "momentum 0.9. First weights: small is N(0, 0.01²), large N(0, 1). The layer figures show the networks "
            "before training.",
        ),
    )


def _epochs(context: Context) -> int:
    return context.pick(8, 4)


def _describe(case: Case) -> str:
    start, normed, rate = case
    return f"{start} weights, {'with' if normed else 'without'} batch norm, rate {rate:g}"


def _network(context: Context, start: str, normed: bool) -> Network:
    data, init = context.data, context.backend.init
    makers: dict[str, Initializer] = {
        "small": lambda shape, rng: init.normal(shape, std=0.01, rng=rng),
        "He": lambda shape, rng: init.he_normal(shape, rng=rng),
        "large": lambda shape, rng: init.normal(shape, std=1.0, rng=rng),
    }
    return Network.mlp(
        [data.features, *[WIDTH] * DEPTH, data.classes],
        context.backend,
        init=makers[start],
        batch_norm=normed,
        rng=context.rng("batch-norm weights"),
    )


def _train(context: Context, case: Case) -> Outcome:
    start, normed, rate = case
    data = context.data
    x, test_x = data.standardized()
    network = _network(context, start, normed)
    order = context.rng("batch-norm order")
    history = train(network, x, data.labels, epochs=_epochs(context), lr=rate, rng=order)
    return Outcome(network, np.array(history.losses), history.final(), network.accuracy(test_x, data.test_labels))


def _layers(context: Context, start: str, normed: bool) -> dict[str, Array]:
    """Deviation of the outputs and norm of the gradients, layer by layer, before training."""
    data = context.data
    network = _network(context, start, normed)
    x = data.standardized()[0][:512]
    outputs = network.outputs(x, training=True)
    deviations = [
        float(y.std(dtype=np.float64))
        for y, layer in zip(outputs, network.layers, strict=True)
        if isinstance(layer, Activation)
    ]
    network.loss(x, data.labels[:512])
    gradients = [gradient.norm for gradient in context.backend.diagnostics.gradient_flow(network)]
    return {"output": np.array(deviations), "gradient": np.array(gradients)}


def _modes(context: Context, network: Network) -> dict[str, float]:
    """A trained network in both modes: accuracy, and whether an image's answer depends on the others in its batch."""
    data = context.data
    test_x = data.standardized()[1]
    half = len(test_x) // 2
    apart = {}
    for training in (True, False):
        alone = network.forward(test_x[:half], training)[0]
        together = network.forward(test_x, training)[0]
        apart[training] = float(np.abs(alone - together).max())
    return {
        "inference accuracy": network.accuracy(test_x, data.test_labels),
        "training accuracy": network.accuracy(test_x, data.test_labels, training=True),
        "inference change": apart[False],
        "training change": apart[True],
    }


def _checks(
    outcomes: dict[Case, Outcome],
    best: dict[tuple[str, bool], float],
    layers: dict[tuple[str, bool], dict[str, Array]],
    modes: dict[str, float],
    rates: tuple[float, ...],
) -> tuple[Check, ...]:
    good = 0.8 * max(case.accuracy for case in outcomes.values())  # what counts as trained, on whatever data
    worst = {
        normed: min(outcomes[start, normed, best[start, normed]].accuracy for start in STARTS)
        for normed in (False, True)
    }
    working = {
        normed: sum(outcomes[start, normed, rate].accuracy > good for start in STARTS for rate in rates)
        for normed in (False, True)
    }
    count = len(STARTS) * len(rates)

    def ratio(start: str, normed: bool) -> float:
        values = layers[start, normed]["output"]
        return float(values[-1] / values[0])

    def outer(normed: bool) -> str:
        return " and ".join(short(ratio(start, normed)) for start in ("small", "large"))

    return (
        Check(
            "at the best rate for each start, the worst start reaches a good accuracy only with batch norm",
            f"{percent(worst[True])} with, {percent(worst[False])} without",
            worst[True] > good > worst[False],
        ),
        Check(
            "more combinations of first weights and learning rate work",
            f"{working[True]} of {count} with, {working[False]} of {count} without (over {percent(good)} accuracy)",
            working[True] > working[False],
        ),
        Check(
            f"the highest rate, {rates[-1]:g}, works from He's weights with batch norm and fails without",
            f"{_reached(outcomes['He', True, rates[-1]])} with, {_reached(outcomes['He', False, rates[-1]])} without",
            outcomes["He", True, rates[-1]].accuracy > good > outcomes["He", False, rates[-1]].accuracy,
        ),
        Check(
            "outputs vanish from small and explode from large weights; with batch norm they do neither",
            f"last layer over first: {outer(False)} without, {outer(True)} with",
            ratio("small", False) < 1e-3
            and ratio("large", False) > 1e3
            and all(0.3 < ratio(start, True) < 3 for start in ("small", "large")),
        ),
        Check(
            "in training mode an image's answer depends on its batch, in inference mode it does not",
            f"logits move by {short(modes['training change'])} and {short(modes['inference change'])}",
            modes["training change"] > 100 * modes["inference change"],
        ),
        Check(
            "the running statistics serve as well as the batch's",
            f"test accuracy {percent(modes['inference accuracy'])} against {percent(modes['training accuracy'])}",
            modes["inference accuracy"] > modes["training accuracy"] - 0.05,
        ),
    )


def _reached(case: Outcome) -> str:
    return outcome(case.loss, case.accuracy)


def _accuracy_table(outcomes: dict[Case, Outcome], rates: tuple[float, ...]) -> Table:
    rows = []
    for start in STARTS:
        for normed in (False, True):
            cells = [_reached(outcomes[start, normed, rate]) for rate in rates]
            rows.append((start, "yes" if normed else "no", *cells))
    return Table("Test accuracy", ("first weights", "batch norm", *(f"rate {rate:g}" for rate in rates)), tuple(rows))


def _mode_table(modes: dict[str, float]) -> Table:
    return Table(
        "Training mode against inference mode",
        ("mode", "statistics", "test accuracy", "one image's logits move with its batch by"),
        (
            ("training", "of the batch", percent(modes["training accuracy"]), short(modes["training change"])),
            ("inference", "running", percent(modes["inference accuracy"]), short(modes["inference change"])),
        ),
    )


def _loss_figure(outcomes: dict[Case, Outcome], best: dict[tuple[str, bool], float], normed: bool) -> Figure:
    figure, axes = figures.panels()
    for start in STARTS:
        rate = best[start, normed]
        curve = figures.smooth(np.minimum(outcomes[start, normed, rate].losses, 1e3), 15)
        end = "" if np.isfinite(outcomes[start, normed, rate].loss) else ", diverged"
        axes.semilogy(np.arange(1, len(curve) + 1), curve, color=COLORS[start], label=f"{start}, rate {rate:g}{end}")
    axes.set(
        title=f"{'With' if normed else 'Without'} batch normalization",
        xlabel="step",
        ylabel="training loss",
        ylim=(5e-3, 30),
    )
    axes.legend(title="first weights, best rate", loc="upper right" if normed else "lower left")
    name = "with" if normed else "without"
    return Figure(name, f"Loss {name} batch norm, each start at its best learning rate.", figures.png(figure))


def _layer_figure(layers: dict[tuple[str, bool], dict[str, Array]], what: str) -> Figure:
    figure, axes = figures.panels()
    for (start, normed), values in layers.items():
        y = values[what]
        style = {"linestyle": "-" if normed else ":", "marker": "o", "markersize": 4}
        axes.semilogy(
            range(1, len(y) + 1), y, color=COLORS[start], label=f"{start}, {'with' if normed else 'without'}", **style
        )
    titles = {
        "output": ("Outputs by layer", "deviation of the outputs"),
        "gradient": ("Gradients by layer", "norm of the weights' gradient"),
    }
    axes.set(title=titles[what][0], xlabel="layer", ylabel=titles[what][1])
    figures.legend_below(axes, 3, fontsize=8)
    return Figure(what, "Before training. Without batch norm (dotted) they vanish or explode.", figures.png(figure))
