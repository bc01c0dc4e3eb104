"""The same training on both backends: the same curve, the time of a step, and where that time goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from types import ModuleType

import numpy as np

from fastnn import runtime
from fastnn.lecture import figures
from fastnn.lecture.backend import BACKENDS
from fastnn.lecture.experiment import Check, Context, Figure, Result, Table, percent, short
from fastnn.lecture.layers import Activation, Array, BatchNorm, Dense, Layer, Parameter
from fastnn.lecture.network import SGD, Network, batches

NAME = "speed"
TITLE = "Speed: the same training on both backends"
CLAIM = (
    "The same training with the same seed gives the same curve on fastnn and on its NumPy twin fastnn.reference, and a "
    "step takes less time on fastnn."
)
HIDDEN = ((100, 100), (256, 256, 256))
BATCH, RATE, MOMENTUM = 64, 0.02, 0.9
PARTS = ("matrix products, bias", "batch norm", "activation", "loss", "update of the weights", "Python in between")
COLORS = {"fastnn": figures.BLUE, "reference": figures.GREY}


@dataclass
class Run:
    """A network in training on one backend, and what was measured on it."""

    network: Network
    optimizer: SGD
    losses: list[float] = field(default_factory=list)
    step: float = float("inf")  # seconds, of the fastest epoch
    accuracy: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)  # seconds of a step by part, of the fastest profiled epoch


def run(context: Context) -> Result:
    tested = {name: BACKENDS[name] for name in ("reference", "fastnn")}
    epochs = context.pick(12, 3)
    measured: dict[str, dict[str, Run]] = {}
    products: dict[str, float] = {}
    context.progress.start(len(HIDDEN) * epochs)
    with runtime.threads(1):
        for hidden in HIDDEN:
            name = "-".join(map(str, (context.data.features, *hidden, context.data.classes)))
            context.progress.working_on(name)
            measured[name] = _compare(context, tested, hidden, epochs)
            products[name] = _matrix_products(measured[name]["fastnn"].network)
    return Result(
        NAME,
        TITLE,
        CLAIM,
        "fastnn against fastnn.reference",
        _checks(measured, 1 / context.data.classes),
        (_step_table(measured, products), _part_table(measured)),
        (_curve_figure(measured), *(_part_figure(name, runs, products[name]) for name, runs in measured.items())),
        (
            f"Batch norm and ReLU after every hidden layer, batches of {BATCH}, {epochs} epochs on "
            f"{context.data.name}, one thread. The backends take turns epoch by epoch; times are of the fastest epoch. "
            "fastnn.reference computes in float64 and is written to be read: for a comparison with fast peers run "
            "`python -m fastnn bench`.",
        ),
    )


def _compare(context: Context, tested: dict[str, ModuleType], hidden: tuple[int, ...], epochs: int) -> dict[str, Run]:
    """Train on the backends in turns, then profile each; every run sees the same weights and batches."""
    data = context.data
    x, test_x = data.standardized()
    sizes = [data.features, *hidden, data.classes]
    runs = {}
    for name, backend in tested.items():
        network = Network.mlp(sizes, backend, batch_norm=True, rng=context.rng("speed weights"))
        runs[name] = Run(network, SGD(network, RATE, MOMENTUM))
    for epoch in range(epochs):
        order = list(batches(len(x), BATCH, context.rng(f"speed order {epoch}")))
        taking_turns = list(runs.values()) if epoch % 2 else list(runs.values())[::-1]
        for run in taking_turns:
            start = perf_counter()
            for chosen in order:
                run.losses.append(run.network.loss(x[chosen], data.labels[chosen]))
                run.optimizer.step()
            run.step = min(run.step, (perf_counter() - start) / len(order))
        context.progress.advance()
    for run in runs.values():
        run.accuracy = run.network.accuracy(test_x, data.test_labels)
    for _ in range(context.pick(5, 2)):
        for run in runs.values():
            parts = _profile(run, x, data.labels, order)
            if not run.parts or sum(parts.values()) < sum(run.parts.values()):
                run.parts = parts
    return runs


class _Timed:
    """A layer that adds the time spent in it to one entry of a dictionary."""

    def __init__(self, layer: Layer, spent: dict[str, float], part: str) -> None:
        self.layer, self.spent, self.part = layer, spent, part

    def _clocked(self, call: Callable[..., Array], *args: object) -> Array:
        start = perf_counter()
        result = call(*args)
        self.spent[self.part] += perf_counter() - start
        return result

    def forward(self, x: Array, training: bool = True) -> Array:
        return self._clocked(self.layer.forward, x, training)

    def backward(self, dy: Array) -> Array:
        return self._clocked(self.layer.backward, dy)

    def parameters(self) -> list[Parameter]:
        return self.layer.parameters()


def _profile(run: Run, x: Array, labels: Array, order: list[Array]) -> dict[str, float]:
    """Seconds of an average step by part. What no layer accounts for is Python and the choice of the batch."""
    spent = dict.fromkeys(PARTS, 0.0)
    kinds = {Dense: PARTS[0], BatchNorm: PARTS[1], Activation: PARTS[2]}
    network = Network([_Timed(layer, spent, kinds[type(layer)]) for layer in run.network.layers], run.network.backend)
    optimizer = SGD(network, RATE, MOMENTUM)
    begin = perf_counter()
    for chosen in order:
        logits = network.forward(x[chosen])
        start = perf_counter()
        _, dlogits = network.backend.cross_entropy(logits, labels[chosen])
        spent["loss"] += perf_counter() - start
        network.backward(dlogits)
        start = perf_counter()
        optimizer.step()
        spent["update of the weights"] += perf_counter() - start
    total = perf_counter() - begin
    spent["Python in between"] = total - sum(spent.values())
    return {part: seconds / len(order) for part, seconds in spent.items()}


def _matrix_products(network: Network) -> float:
    """Seconds that the matrix products of a step take alone, into memory that is there: no backend can save these."""
    rng = np.random.default_rng(0)
    tasks = []
    for layer in network.dense():
        x = rng.standard_normal((BATCH, layer.W.shape[0])).astype(np.float32)
        dy = rng.standard_normal((BATCH, layer.W.shape[1])).astype(np.float32)
        tasks += [(x, layer.W, dy.copy()), (x.T, dy, np.empty_like(layer.W)), (dy, layer.W.T, x.copy())]
    best = float("inf")
    for _ in range(200):
        start = perf_counter()
        for a, b, out in tasks:
            np.matmul(a, b, out=out)
        best = min(best, perf_counter() - start)
    return best


def _difference(runs: dict[str, Run]) -> float:
    """Largest difference between the losses of the two backends at any step."""
    return float(np.abs(np.subtract(runs["fastnn"].losses, runs["reference"].losses)).max())


def _checks(measured: dict[str, dict[str, Run]], chance: float) -> tuple[Check, ...]:
    difference = max(_difference(runs) for runs in measured.values())
    fast, slow = ([runs[name].accuracy for runs in measured.values()] for name in ("fastnn", "reference"))
    gains = [runs["reference"].step / runs["fastnn"].step for runs in measured.values()]
    return (
        Check(
            "both backends have the same loss at every step, within 0.02",
            f"at most {short(difference)} apart",
            difference < 0.02,
        ),
        Check(
            "both learn, to the same test accuracy within 1 %",
            ", ".join(f"{percent(a)} and {percent(b)}" for a, b in zip(fast, slow, strict=True)),
            min(fast) > 2 * chance and all(abs(a - b) <= 0.01 for a, b in zip(fast, slow, strict=True)),
        ),
        Check(
            "a step takes less time on fastnn",
            " and ".join(f"{gain:.1f} times as fast" for gain in gains),
            min(gains) > 1,
        ),
    )


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} µs"


def _step_table(measured: dict[str, dict[str, Run]], products: dict[str, float]) -> Table:
    rows = []
    for name, runs in measured.items():
        fast, slow = runs["fastnn"], runs["reference"]
        rows.append(
            (
                name,
                _microseconds(slow.step),
                _microseconds(fast.step),
                f"{slow.step / fast.step:.1f}",
                _microseconds(products[name]),
                short(_difference(runs)),
                percent(fast.accuracy),
            )
        )
    return Table(
        "A training step",
        ("network", "reference", "fastnn", "speed-up", "matrix products alone", "curves differ by", "test accuracy"),
        tuple(rows),
        "The matrix products are NumPy's on both backends: their time is the floor.",
    )


def _part_table(measured: dict[str, dict[str, Run]]) -> Table:
    columns, rows = ["part of a step"], []
    for name in measured:
        columns += [f"{name}: reference", "fastnn"]
    for part in PARTS:
        cells = [
            _microseconds(runs[name].parts[part]) for runs in measured.values() for name in ("reference", "fastnn")
        ]
        rows.append((part, *cells))
    return Table("Where the time goes", tuple(columns), tuple(rows), "Timing each layer adds a few microseconds.")


def _curve_figure(measured: dict[str, dict[str, Run]]) -> Figure:
    figure, axes = figures.panels()
    name, runs = next(iter(measured.items()))
    for backend, width, style in (("reference", 6, "-"), ("fastnn", 1.6, "-")):
        losses = figures.smooth(runs[backend].losses, 10)
        axes.semilogy(
            np.arange(1, len(losses) + 1), losses, style, linewidth=width, color=COLORS[backend], label=backend
        )
    axes.set(title=f"Two backends, one curve: {name}", xlabel="step", ylabel="training loss")
    axes.legend()
    return Figure("curve", "Same seed, same weights, same batches (mean of 10 steps).", figures.png(figure))


def _part_figure(name: str, runs: dict[str, Run], products: float) -> Figure:
    figure, axes = figures.panels(height=3.2)
    colors = (figures.INK, figures.BLUE, figures.GREEN, figures.ORANGE, figures.PURPLE, figures.GREY)
    left = np.zeros(2)
    for part, color in zip(PARTS, colors, strict=True):
        values = np.array([1e6 * runs[backend].parts[part] for backend in ("fastnn", "reference")])
        axes.barh(("fastnn", "reference"), values, 0.55, left=left, color=color, label=part)
        left += values
    axes.axvline(1e6 * products, color=figures.RED, linewidth=1.2, linestyle="--", label="matrix products alone")
    axes.set(title=f"Where the time goes: {name}", xlabel="microseconds a step")
    axes.grid(axis="y", visible=False)
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.24), fontsize=8)
    return Figure(f"parts-{name}", "What is left of the red line no backend can save.", figures.png(figure))
