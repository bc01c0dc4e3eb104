"""Inputs that are all positive give a unit's weights gradients of one sign: the path of two weights zigzags."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastnn.lecture import figures
from fastnn.lecture.experiment import Check, Context, Figure, Result, Table, percent
from fastnn.lecture.layers import Array
from fastnn.lecture.network import SGD, Network

NAME = "zigzag"
TITLE = "Zigzag: why outputs should be zero-centred"
CLAIM = (
    "With sigmoid's all-positive outputs as inputs, the gradient of a unit's weights for one example is all positive "
    "or all negative, so two weights can only move up together or down together and their path zigzags. With tanh it "
    "is not so."
)
NAMES = ("sigmoid", "tanh", "relu")
BATCHES = (1, 8, 64)
WIDTH = 40


@dataclass(frozen=True)
class Walk:
    """One training run: how often gradients had one sign, and where the second layer's weights went."""

    one_sign: float
    path: Array  # (steps + 1, WIDTH, WIDTH): the weights before training and after each step


def run(context: Context) -> Result:
    steps = context.pick(1200, 150)
    runs = [(name, batch) for name in NAMES for batch in BATCHES]
    walks = {
        (name, batch): _walk(context, name, batch, steps)
        for name, batch in context.track(runs, lambda item: f"{item[0]}, batch {item[1]}")
    }
    share = {key: walk.one_sign for key, walk in walks.items()}
    pairs = {name: _pair(walks[name, 1].path) for name in ("sigmoid", "tanh")}
    together = {name: _together(path) for name, path in pairs.items()}
    across = {name: _across(path) for name, path in pairs.items()}
    checks = (
        Check(
            "sigmoid, one example a step: every unit's gradient has one sign",
            f"{percent(share['sigmoid', 1])} of the gradients",
            share["sigmoid", 1] == 1.0,
        ),
        Check("tanh, one example a step: hardly any has", f"{percent(share['tanh', 1])}", share["tanh", 1] < 0.01),
        Check(
            "two weights of a unit move the same way at every step with sigmoid, at about half of them with tanh",
            f"{percent(together['sigmoid'])} and {percent(together['tanh'])} of the steps",
            together["sigmoid"] == 1.0 and together["tanh"] < 0.8,
        ),
        Check(
            "larger batches help: they mix examples of both signs",
            "sigmoid: " + ", ".join(f"{percent(share['sigmoid', b])} at batch {b}" for b in BATCHES),
            share["sigmoid", 64] < share["sigmoid", 1],
        ),
    )
    table = Table(
        "Gradients of a unit's weights that are all of one sign",
        ("activation below", *(f"batch {batch}" for batch in BATCHES)),
        tuple((name, *(percent(share[name, batch]) for batch in BATCHES)) for name in NAMES),
        f"Second of two layers of {WIDTH} units, {steps} steps on {context.data.name}; a zero fits either sign.",
    )
    paths = Table(
        "The path of two weights, one example a step",
        ("activation below", "steps up or down together", "across the way"),
        tuple((name, percent(together[name]), percent(across[name])) for name in pairs),
        "Of each network the two weights of a unit that ended farthest apart, one up and one down. Across: the part of "
        "the way walked that led neither towards the end nor back.",
    )
    return Result(
        NAME,
        TITLE,
        CLAIM,
        context.backend.__name__,
        checks,
        (table, paths),
        (_path_figure(pairs), _steps_figure(pairs), _share_figure(share)),
    )


def _walk(context: Context, name: str, batch: int, steps: int) -> Walk:
    data, backend = context.data, context.backend
    network = Network.mlp(
        [data.features, WIDTH, WIDTH, data.classes],
        backend,
        activation=name,
        init=lambda shape, rng: backend.init.xavier_normal(shape, rng=rng),
        rng=context.rng("zigzag weights"),
    )
    rng = context.rng("zigzag examples")
    x = data.standardized()[0]
    unit_layer = network.dense()[1]
    optimizer = SGD(network, lr=0.1)
    path, one_sign, counted = [unit_layer.W.copy()], 0, 0
    for _ in range(steps):
        chosen = rng.integers(len(x), size=batch)
        network.loss(x[chosen], data.labels[chosen])
        up, down = (unit_layer.dW > 0).any(axis=0), (unit_layer.dW < 0).any(axis=0)
        one_sign += int((up ^ down).sum())
        counted += int((up | down).sum())  # a unit without any gradient says nothing
        optimizer.step()
        path.append(unit_layer.W.copy())
    return Walk(one_sign / counted, np.array(path))


def _pair(path: Array) -> Array:
    """The path of two weights of one unit, from (0, 0): the two that went farthest in opposite directions."""
    moved = path[-1] - path[0]
    up, down = moved.argmax(axis=0), moved.argmin(axis=0)
    units = np.arange(moved.shape[1])
    unit = int(np.minimum(moved[up, units], -moved[down, units]).argmax())
    both = path[:, [up[unit], down[unit]], unit].astype(np.float64)
    return np.asarray(both - both[0])


def _together(path: Array) -> float:
    """Share of the steps in which both weights moved up or both down."""
    product = np.diff(path, axis=0).prod(axis=1)
    return float((product > 0).sum() / max(1, (product != 0).sum()))


def _across(path: Array) -> float:
    """Part of the length walked that is at right angles to the way from start to end."""
    way = (path[-1] - path[0]) / np.linalg.norm(path[-1] - path[0])
    moves = np.diff(path, axis=0)
    return float(np.abs(moves @ [-way[1], way[0]]).sum() / np.linalg.norm(moves, axis=1).sum())


def _path_figure(pairs: dict[str, Array]) -> Figure:
    figure, axes = figures.panels(height=4.2)
    for name, path in pairs.items():
        axes.plot(*path.T, color=figures.ACTIVATION_COLOR[name], linewidth=1.1, label=name)
        axes.plot(*path[-1], "o", color=figures.ACTIVATION_COLOR[name], markersize=7)
    axes.plot(0, 0, "o", color=figures.INK, markersize=7)
    axes.annotate("start", (0, 0), xytext=(-8, -4), textcoords="offset points", ha="right")
    axes.set(title="The path of two weights of a unit", xlabel="change of one weight", ylabel="change of another")
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(title="activation below")
    return Figure(
        "path",
        "Both end to the lower right. With sigmoid the way there leads up and down the diagonal.",
        figures.png(figure),
    )


def _steps_figure(pairs: dict[str, Array]) -> Figure:
    figure, axes = figures.panels(height=4.2)
    for name in ("tanh", "sigmoid"):
        moves = np.diff(pairs[name], axis=0)
        scale = np.percentile(np.abs(moves), 99) or 1.0
        axes.plot(*(moves / scale).T, ".", markersize=4, alpha=0.5, color=figures.ACTIVATION_COLOR[name], label=name)
    axes.axhline(0, color=figures.MUTED, linewidth=0.8)
    axes.axvline(0, color=figures.MUTED, linewidth=0.8)
    axes.set(
        title="Every single step of these two weights",
        xlabel="step of one weight (scaled)",
        ylabel="step of the other (scaled)",
        xlim=(-1.25, 1.25),
        ylim=(-1.25, 1.25),
    )
    axes.legend(title="activation below", loc="upper left", markerscale=2.5)
    return Figure("steps", "With sigmoid two of the four directions never occur.", figures.png(figure))


def _share_figure(share: dict[tuple[str, int], float]) -> Figure:
    figure, axes = figures.panels()
    for i, name in enumerate(NAMES):
        places = np.arange(len(BATCHES)) + (i - 1) * 0.26
        bars = axes.bar(
            places, [100 * share[name, b] for b in BATCHES], 0.24, color=figures.ACTIVATION_COLOR[name], label=name
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=2)
    axes.set_xticks(range(len(BATCHES)), [f"batch {b}" for b in BATCHES])
    axes.set(title="Gradients of one sign", ylabel="share of units and steps (%)", ylim=(0, 118))
    axes.grid(axis="x", visible=False)
    axes.legend(ncols=3, loc="upper right", title=None)
    return Figure("share", "What one example forces on all weights of a unit, a batch mixes.", figures.png(figure))
