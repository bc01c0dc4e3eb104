"""Curves and gradients of the activation functions, and what is left of a gradient after a stack of layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastnn.lecture import figures
from fastnn.lecture.experiment import Check, Context, Figure, Result, Table, percent, short
from fastnn.lecture.layers import Activation, Array
from fastnn.lecture.network import Network

NAME = "activations"
TITLE = "Activation functions: range, centre and gradient"
CLAIM = (
    "Sigmoid and tanh saturate, and a saturated unit kills the gradient. Sigmoid's and ReLU's outputs are not "
    "zero-centred, tanh's are. ReLU does not saturate for positive inputs but passes nothing for negative ones; "
    "leaky ReLU always passes something."
)
LECTURE = ("sigmoid", "tanh", "relu", "leaky_relu")
DEPTH, WIDTH = 10, 100


def run(context: Context) -> Result:
    names = tuple(dict.fromkeys((*LECTURE, *context.activations)))
    inputs = context.rng("activations inputs").standard_normal(20_000).astype(np.float32)
    facts = {name: _facts(context, name, inputs) for name in names}
    flow = {name: _gradient_by_layer(context, name) for name in context.track(names)}
    left = {name: float(flow[name][0]) for name in names}
    return Result(
        NAME,
        TITLE,
        CLAIM,
        context.backend.__name__,
        _checks(facts, left),
        (_table(facts), _flow_table(left)),
        (_curves(context, names), _gradients(context, names), _flow_figure(flow)),
        (
            f"The stack has {DEPTH} layers of {WIDTH} units with Xavier's weights, the same ones for every function; "
            f"its inputs are {context.data.name}. The gradient sent back from the top is random with unit variance.",
        ),
    )


def _derivative(context: Context, name: str, x: Array) -> Array:
    layer = Activation(context.backend, name)
    layer.forward(x)
    return layer.backward(np.ones_like(x))


def _facts(context: Context, name: str, inputs: Array) -> dict[str, float]:
    grid = np.concatenate([np.linspace(-20, 20, 4001), [-np.inf, np.inf]])
    y = Activation(context.backend, name).forward(grid)
    low, zero, high = _derivative(context, name, np.array([-10.0, 0.0, 10.0]))
    mean = float(Activation(context.backend, name).forward(inputs).mean(dtype=np.float64))
    return {"min": float(y.min()), "max": float(y.max()), "mean": mean, "low": low, "zero": zero, "high": high}


def _gradient_by_layer(context: Context, name: str) -> Array:
    """Norm of the gradient that enters each of the stacked activations, over what was sent in at the top."""
    backend, data = context.backend, context.data
    network = Network.mlp(
        [data.features] + [WIDTH] * (DEPTH + 1),
        backend,
        activation=name,
        init=lambda shape, rng: backend.init.xavier_normal(shape, rng=rng),
        rng=context.rng("activations weights"),
    )
    network.layers = network.layers[:-1]  # the stack ends in an activation, not in logits
    x = data.standardized()[0][:512]
    y = network.forward(x)
    dy = context.rng("activations gradient").standard_normal(y.shape).astype(np.float32)
    top, norms = float(np.linalg.norm(dy)), []
    for layer in reversed(network.layers):
        dy = layer.backward(dy)
        if isinstance(layer, Activation):
            norms.append(float(np.linalg.norm(dy)) / top)
    return np.array(norms[::-1])


def _checks(facts: dict[str, dict[str, float]], left: dict[str, float]) -> tuple[Check, ...]:
    saturated = max(abs(facts[name][side]) for name in ("sigmoid", "tanh") for side in ("low", "high"))
    relu, leaky = facts["relu"], facts["leaky_relu"]
    return (
        Check(
            "sigmoid's and tanh's gradient at x = ±10 is under 0.001", f"at most {short(saturated)}", saturated < 1e-3
        ),
        Check(
            "ReLU passes the whole gradient at x = 10 and none at x = -10",
            f"{short(relu['high'])} and {short(relu['low'])}",
            relu["high"] == 1 and relu["low"] == 0,
        ),
        Check("leaky ReLU still passes some gradient at x = -10", short(leaky["low"]), leaky["low"] > 0),
        Check(
            "sigmoid and ReLU answer zero-centred inputs with a positive mean, tanh with none",
            ", ".join(f"{n} {short(facts[n]['mean'])}" for n in ("sigmoid", "relu", "tanh")),
            facts["sigmoid"]["mean"] > 0.1 and facts["relu"]["mean"] > 0.1 and abs(facts["tanh"]["mean"]) < 0.02,
        ),
        Check(
            f"after {DEPTH} layers sigmoid leaves less than a thousandth of the gradient that ReLU leaves",
            f"{short(left['sigmoid'])} against {short(left['relu'])}",
            left["sigmoid"] < 1e-3 * left["relu"],
        ),
    )


def _bound(value: float) -> str:
    return short(value) if np.isfinite(value) else ("∞" if value > 0 else "-∞")


def _table(facts: dict[str, dict[str, float]]) -> Table:
    return Table(
        "The functions",
        ("function", "range", "mean output", "zero-centred", "f'(-10)", "f'(0)", "f'(10)"),
        tuple(
            (
                name,
                f"{_bound(fact['min'])} to {_bound(fact['max'])}",
                short(fact["mean"]) if abs(fact["mean"]) >= 0.02 else "0.00",
                "yes" if abs(fact["mean"]) < 0.02 else "no",
                short(fact["low"]),
                short(fact["zero"]),
                short(fact["high"]),
            )
            for name, fact in facts.items()
        ),
        "The mean output is that of 20000 inputs drawn from N(0, 1).",
    )


def _flow_table(left: dict[str, float]) -> Table:
    return Table(
        f"The gradient after {DEPTH} layers",
        ("function", "left", "lost"),
        tuple(
            (name, short(share), percent(max(1 - share, 0)) if share > 1e-4 else "> 99.99 %")
            for name, share in left.items()
        ),
    )


def _line(name: str, names: tuple[str, ...]) -> dict[str, Any]:
    """How a function is drawn. Those beside the lecture's are thin; leaky ReLU is dashed, for it runs along ReLU."""
    label = {"relu": "ReLU", "leaky_relu": "leaky ReLU"}.get(name, name)
    if name in LECTURE:
        style = "--" if name == "leaky_relu" else "-"
        return {"label": label, "color": figures.ACTIVATION_COLOR[name], "linestyle": style}
    extra = [other for other in names if other not in LECTURE].index(name)
    style = ("-", "--", ":")[extra // len(figures.CYCLE) % 3]
    return {"label": label, "color": figures.CYCLE[extra % len(figures.CYCLE)], "linestyle": style, "linewidth": 1.2}


def _legend(axes: Any, names: tuple[str, ...]) -> None:
    if len(names) == len(LECTURE):
        axes.legend()
    else:
        figures.legend_below(axes, 4, fontsize=7)


def _curves(context: Context, names: tuple[str, ...]) -> Figure:
    x = np.linspace(-5, 5, 801)
    figure, axes = figures.panels()
    for name in names:
        axes.plot(x, Activation(context.backend, name).forward(x), **_line(name, names))
    axes.set(title="Activation functions", xlabel="input x", ylabel="output f(x)", ylim=(-1.6, 3.2), xlim=(-5, 5))
    _legend(axes, names)
    return Figure(
        "curves", "Sigmoid and tanh level off on both sides, ReLU on one, leaky ReLU on none.", figures.png(figure)
    )


def _gradients(context: Context, names: tuple[str, ...]) -> Figure:
    x = np.linspace(-5, 5, 801)
    figure, axes = figures.panels()
    for name in names:
        axes.plot(x, _derivative(context, name, x), **_line(name, names))
    axes.set(title="Their gradients", xlabel="input x", ylabel="gradient f'(x)", xlim=(-5, 5))
    _legend(axes, names)
    return Figure("gradients", "Sigmoid's gradient is never above 1/4, and nearly 0 beyond ±5.", figures.png(figure))


def _flow_figure(flow: dict[str, Array]) -> Figure:
    figure, axes = figures.panels()
    names = tuple(flow)
    for name, norms in flow.items():
        axes.semilogy(np.arange(1, DEPTH + 1), norms, marker="o", markersize=4, **_line(name, names))
    axes.set(
        title=f"Gradient left in a stack of {DEPTH} layers",
        xlabel="layer (the gradient comes from the right)",
        ylabel="share of the gradient's norm",
    )
    axes.set_xticks(range(1, DEPTH + 1))
    _legend(axes, names)
    return Figure("flow", "On its way down each sigmoid layer takes most of the gradient away.", figures.png(figure))
