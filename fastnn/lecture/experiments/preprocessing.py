"""Zero-centring, normalising, decorrelating and whitening real data, and what it does for training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastnn.lecture import figures
from fastnn.lecture.experiment import Check, Context, Figure, Result, Table, percent, short
from fastnn.lecture.layers import Array
from fastnn.lecture.network import Network, train

NAME = "preprocessing"
TITLE = "Preprocessing: zero mean, normalised, decorrelated, whitened"
CLAIM = (
    "Training goes better on zero-centred data. Dividing by the deviation, decorrelating and whitening give data of "
    "unit variance without correlations; for images, taking off the mean is what matters: a mean image, or one mean "
    "a channel."
)
# decorrelated and whitened data keep this share; what is left is noise that whitening would blow up
KEPT_VARIANCE = 0.99
HIDDEN = (100, 100)
COLORS = {
    "original": figures.GREY,
    "channel mean off": figures.ORANGE,
    "mean image off": figures.BLUE,
    "normalised": figures.GREEN,
    "decorrelated": figures.TEAL,
    "whitened": figures.PURPLE,
}
TRAINED = ("original", "channel mean off", "mean image off", "normalised", "whitened")
POINT_COLORS = (figures.GREY, figures.BLUE, figures.GREEN, figures.TEAL, figures.PURPLE)


@dataclass(frozen=True)
class Outcome:
    """Training on one version of the data at one learning rate."""

    curve: Array
    loss: float
    accuracy: float


def run(context: Context) -> Result:
    versions = _versions(context)
    rates = [
        rate * 64 / context.data.features
        for rate in context.pick((0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0), (0.1, 0.3, 1.0))
    ]
    cases = [(name, rate) for name in TRAINED for rate in rates]
    outcomes = {
        case: _train(context, *versions[case[0]], case[1])
        for case in context.track(cases, lambda case: f"{case[0]}, rate {case[1]:.2g}")
    }
    best = {name: min(rates, key=lambda rate: outcomes[name, rate].loss) for name in TRAINED}
    shape = {name: _shape(x) for name, (x, _) in versions.items()}
    return Result(
        NAME,
        TITLE,
        CLAIM,
        context.backend.__name__,
        _checks(shape, outcomes, best),
        (_data_table(shape), _training_table(outcomes, best)),
        (
            _scatter_figure(context),
            _mean_figure(context),
            _curve_figure(outcomes, best),
            _rate_figure(outcomes, rates),
        ),
        (
            f"Trained: {context.data.features}-{'-'.join(map(str, HIDDEN))}-{context.data.classes} with tanh on "
            f"{context.data.name}, {_epochs(context)} epochs of plain SGD, same first weights. The first three "
            "versions are on one scale, so that only the mean differs.",
        ),
    )


def _epochs(context: Context) -> int:
    return context.pick(4, 2)


def _versions(context: Context) -> dict[str, tuple[Array, Array]]:
    """Training and test images in every version, fitted on the training images alone."""
    data, tools = context.data, context.backend.preprocessing
    channels = data.image_shape[2]

    def both(transform: object) -> tuple[Array, Array]:
        return tuple(np.ascontiguousarray(transform(part), dtype=np.float32) for part in (data.x, data.test_x))  # type: ignore

    centre = tools.Standardizer(with_std=False).fit(data.x)
    scale = float(np.std(centre.transform(data.x), dtype=np.float64))
    channel = tools.Standardizer(with_std=False).fit(data.x.reshape(-1, channels))
    pca = tools.PCA(KEPT_VARIANCE).fit(data.x)
    whitener = tools.Whitener(KEPT_VARIANCE).fit(data.x)
    return {
        "original": both(lambda x: x / scale),
        "channel mean off": both(lambda x: channel.transform(x.reshape(-1, channels)).reshape(x.shape) / scale),
        "mean image off": both(lambda x: centre.transform(x) / scale),
        "normalised": both(tools.Standardizer().fit(data.x).transform),
        "decorrelated": both(pca.transform),
        "whitened": both(whitener.transform),
    }


def _shape(x: Array) -> dict[str, float]:
    """What the covariance of a version says: means, deviations, correlations, and the weight of one direction."""
    x = x.astype(np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    alive = deviation > 1e-6 * deviation.max()
    z = (x[:, alive] - mean[alive]) / deviation[alive]
    correlation = np.abs(z.T @ z / len(z))
    np.fill_diagonal(correlation, 0)
    energy = np.linalg.eigvalsh(x.T @ x)
    return {
        "mean": float(np.abs(mean).max() / deviation.max()),
        "low": float(deviation[alive].min()),
        "high": float(deviation.max()),
        "correlation": float(correlation.max()),
        "top": float(energy[-1] / energy.sum()),
        "features": x.shape[1],
    }


def _train(context: Context, x: Array, test_x: Array, rate: float) -> Outcome:
    data, backend = context.data, context.backend
    curves, accuracies = [], []
    for repeat in range(1 if data.features > 1000 else context.pick(3, 1)):
        network = Network.mlp(
            [x.shape[1], *HIDDEN, data.classes],
            backend,
            activation="tanh",
            init=lambda shape, rng: backend.init.xavier_normal(shape, rng=rng),
            rng=context.rng(f"preprocessing weights {repeat}"),
        )
        order = context.rng(f"preprocessing order {repeat}")
        history = train(network, x, data.labels, epochs=_epochs(context), lr=rate, momentum=0.0, batch=32, rng=order)
        curves.append(history.losses)
        accuracies.append(network.accuracy(test_x, data.test_labels))
    shortest = min(map(len, curves))
    curve = np.mean([losses[:shortest] for losses in curves], axis=0)
    loss = float(np.mean([np.mean(losses[-30:]) for losses in curves]))
    return Outcome(curve, loss if np.isfinite(loss) else float("inf"), float(np.mean(accuracies)))


def _checks(
    shape: dict[str, dict[str, float]], outcomes: dict[tuple[str, float], Outcome], best: dict[str, float]
) -> tuple[Check, ...]:
    loss = {name: outcomes[name, best[name]].loss for name in TRAINED}
    original, centred, white = shape["original"], shape["mean image off"], shape["whitened"]
    correlations = shape["decorrelated"]["correlation"], white["correlation"]
    return (
        Check(
            "taking the mean image off leaves no mean", f"{short(centred['mean'])} deviations", centred["mean"] < 1e-4
        ),
        Check(
            "decorrelated and whitened features do not correlate, the original ones do",
            f"at most {short(max(correlations))} against {short(original['correlation'])}",
            max(correlations) < 1e-3 < original["correlation"],
        ),
        Check(
            "whitened features all have unit variance",
            f"deviations {white['low']:.4f} to {white['high']:.4f}",
            abs(white["low"] - 1) < 0.01 and abs(white["high"] - 1) < 0.01,
        ),
        Check(
            "with the mean, one direction holds most of the data's energy; without it, far less",
            f"{percent(original['top'])} before, {percent(centred['top'])} after",
            original["top"] > max(0.5, 1.5 * centred["top"]),
        ),
        Check(
            "each at its best learning rate, zero-centred data reach a lower loss",
            f"{short(loss['mean image off'])} against {short(loss['original'])}",
            loss["mean image off"] < loss["original"],
        ),
        Check(
            "the per-channel mean helps as well",
            f"{short(loss['channel mean off'])} against {short(loss['original'])}; "
            f"the mean image {short(loss['mean image off'])}",
            loss["channel mean off"] < loss["original"],
        ),
    )


def _data_table(shape: dict[str, dict[str, float]]) -> Table:
    return Table(
        "The data",
        ("version", "features", "largest mean", "deviations", "largest correlation", "energy in one direction"),
        tuple(
            (
                name,
                str(int(fact["features"])),
                short(fact["mean"]),
                f"{fact['low']:.2g} to {fact['high']:.2g}",
                short(fact["correlation"]),
                percent(fact["top"]),
            )
            for name, fact in shape.items()
        ),
        f"Means over the largest deviation. Decorrelated and whitened keep {percent(KEPT_VARIANCE)} of the variance.",
    )


def _training_table(outcomes: dict[tuple[str, float], Outcome], best: dict[str, float]) -> Table:
    return Table(
        "Training, each version at its best learning rate",
        ("version", "rate", "loss", "test accuracy"),
        tuple(
            (
                name,
                f"{best[name]:.2g}",
                short(outcomes[name, best[name]].loss),
                percent(outcomes[name, best[name]].accuracy),
            )
            for name in TRAINED
        ),
    )


def _scatter_figure(context: Context) -> Figure:
    """The five pictures of the lecture, for the two pixels that correlate most among those that vary much."""
    data, tools = context.data, context.backend.preprocessing
    x = data.x.astype(np.float64)
    often = np.argsort(x.std(axis=0))[-min(24, x.shape[1]) :]
    correlation = np.abs(np.corrcoef(x[:, often].T))
    np.fill_diagonal(correlation, 0)
    i, j = np.unravel_index(correlation.argmax(), correlation.shape)
    # The digits have 17 grey levels: a little noise for the eye, so that equal points do not hide each other.
    pair = x[:, [often[i], often[j]]] + context.rng("preprocessing jitter").uniform(-1 / 32, 1 / 32, (len(x), 2))
    steps = {
        "original": pair,
        "zero-centred": tools.zero_center(pair),
        "normalised": tools.standardize(pair),
        "decorrelated": tools.PCA().fit_transform(pair),
        "whitened": tools.Whitener().fit_transform(pair),
    }
    figure, panels = figures.panels(1, 5, width=10.5, height=2.4)
    for axes, (name, points), color in zip(panels, steps.items(), POINT_COLORS, strict=True):
        axes.plot(*points[:1000].T, ".", markersize=2.5, alpha=0.5, color=color)
        axes.axhline(0, color=figures.INK, linewidth=0.8)
        axes.axvline(0, color=figures.INK, linewidth=0.8)
        reach = 1.05 * np.abs(points).max()
        axes.set(title=name, xlim=(-reach, reach), ylim=(-reach, reach))
        axes.set_box_aspect(1)
        axes.tick_params(labelsize=8)
        axes.locator_params(nbins=5)
    return Figure(
        "data",
        "Two correlated pixels of the real images in the five versions of the lecture.",
        figures.png(figure),
        wide=True,
    )


def _mean_figure(context: Context) -> Figure:
    data = context.data
    mean = data.x.mean(axis=0).reshape(data.image_shape)
    channel = np.broadcast_to(mean.mean(axis=(0, 1)), data.image_shape)
    example = data.x[0].reshape(data.image_shape)
    figure, panels = figures.panels(1, 4, width=5.0, height=1.9)
    shown = {"an image": example, "mean image": mean, "channel mean": channel, "image - mean": (example - mean + 1) / 2}
    for axes, (name, image) in zip(panels, shown.items(), strict=True):
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(name, fontsize=9, loc="center")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
    values = "one value a pixel" if data.image_shape[2] == 1 else "one value a pixel and channel"
    return Figure(
        "mean", f"The mean image has {values}, the channel mean one for the whole plane.", figures.png(figure)
    )


def _curve_figure(outcomes: dict[tuple[str, float], Outcome], best: dict[str, float]) -> Figure:
    figure, axes = figures.panels()
    for name in TRAINED:
        curve = figures.smooth(outcomes[name, best[name]].curve, 20)
        axes.semilogy(np.arange(1, len(curve) + 1), curve, color=COLORS[name], label=f"{name}, rate {best[name]:.2g}")
    axes.set(title="Loss, each at its best rate", xlabel="step", ylabel="training loss")
    axes.legend()
    return Figure("curves", "Mean over the last 20 steps. Zero-centred data train faster.", figures.png(figure))


def _rate_figure(outcomes: dict[tuple[str, float], Outcome], rates: list[float]) -> Figure:
    figure, axes = figures.panels()
    for name in TRAINED:
        losses = [outcomes[name, rate].loss for rate in rates]
        axes.loglog(rates, losses, "o-", markersize=5, color=COLORS[name], label=name)
    axes.set(title="Loss against learning rate", xlabel="learning rate", ylabel="training loss at the end")
    axes.legend()
    return Figure(
        "rates", "With the mean left in, training breaks down at rates that suit centred data.", figures.png(figure)
    )
