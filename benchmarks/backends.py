"""How much of a host's time its adapter wins: python benchmarks/backends.py [HOST...] [--seconds S]

Each line runs the same work on the host alone and on fastnn, in turns, and compares the fastest run of each. fastnn,
matrix products and PyTorch have one thread, so that the figures are those of the kernels; JAX has no such setting.
Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported

import numpy as np

import fastnn as fn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

Work = Callable[[], Any]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def fastest(*works: Work, seconds: float) -> list[float]:
    """The shortest time of each, measured in turns."""
    for work in works:
        work()
    best = [float("inf")] * len(works)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for i, work in enumerate(works):
            start = time.perf_counter()
            work()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def cs231n() -> Iterator[tuple[str, Work, Work]]:
    from cs231n_network import Network, Plain

    from fastnn.backends import cs231n as layers

    for normalization in (None, "batchnorm", "layernorm"):
        for sizes in ((768, 100, 100, 10), (3072, 512, 512, 10)):
            host, ours = (
                Network(which, normalization, 1, np.float32, samples=64, sizes=sizes, rate=1e-4)
                for which in (Plain, layers)
            )
            label = f"training step, {'-'.join(map(str, sizes))}, batch 64, {normalization or 'no normalization'}"
            yield label, host.step, ours.step


def sklearn() -> Iterator[tuple[str, Work, Work]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    from fastnn.backends import sklearn as backend

    warnings.simplefilter("ignore", ConvergenceWarning)
    X, y = normal(4000, 64), RNG.integers(0, 10, 4000)
    for activation in ("relu", "tanh", "logistic"):
        network = MLPClassifier((256, 128), activation=activation, max_iter=1, random_state=0).fit(X, y)

        def fit(activation: str = activation) -> None:
            MLPClassifier((256, 128), activation=activation, max_iter=1, random_state=0).fit(X, y)

        def predict(network: Any = network) -> None:
            network.predict_proba(X)

        for label, work in (("fit, one epoch", fit), ("predict_proba", predict)):
            yield f"MLPClassifier(256, 128), {activation}: {label}", work, accelerated(backend, work)


def accelerated(backend: Any, work: Work) -> Work:
    def run() -> None:
        with backend.accelerated():
            work()

    return run


def thinc() -> Iterator[tuple[str, Work, Work]]:
    import thinc.api as t

    from fastnn.backends.thinc import FastnnOps

    t.fix_random_seed(0)
    host, fast = t.NumpyOps(), FastnnOps()
    X, dY = normal(1000, 300), normal(1000, 300)
    for name in ("relu", "sigmoid", "gelu", "gelu_approx", "swish", "mish", "hard_sigmoid", "hard_swish", "softmax"):
        yield (
            f"ops.{name}, (1000, 300)",
            lambda name=name: getattr(host, name)(X),
            lambda name=name: getattr(fast, name)(X),
        )
    for name in ("relu", "gelu", "mish"):
        yield (
            f"ops.backprop_{name}, (1000, 300)",
            lambda name=name: getattr(host, f"backprop_{name}")(dY, X),
            lambda name=name: getattr(fast, f"backprop_{name}")(dY, X),
        )
    pieces = normal(1000, 96, 3)
    yield "ops.maxout, (1000, 96, 3)", lambda: host.maxout(pieces), lambda: fast.maxout(pieces)
    for label, layer in (("Mish", t.Mish), ("Gelu", t.Gelu), ("Maxout", t.Maxout), ("Relu", t.Relu)):
        steps = []
        for ops in (host, fast):
            with t.use_ops(ops.name):
                model = t.chain(layer(256), layer(256), t.Softmax()).initialize(X, normal(1000, 10))

            def step(model: Any = model) -> None:
                Yh, backprop = model.begin_update(X)
                backprop(Yh)

            steps.append(step)
        yield f"chain({label}(256), {label}(256), Softmax()): forward and backward, batch 1000", *steps


def autograd() -> Iterator[tuple[str, Work, Work]]:
    import autograd.numpy as anp
    import autograd.scipy.special as special
    from autograd import grad

    from fastnn.backends import autograd as F

    def batch_norm(x: Any) -> Any:
        x = x - anp.mean(x, axis=0)
        return x / anp.sqrt(anp.mean(x * x, axis=0) + 1e-5)

    hosts = {
        "sigmoid": lambda x: 1 / (1 + anp.exp(-x)),
        "gelu": lambda x: 0.5 * x * (1 + special.erf(x * np.float32(0.5**0.5))),
        "softplus": lambda x: anp.logaddexp(x, 0),
        "batch_norm": batch_norm,
    }
    for shape in ((64, 100), (1000, 1000)):
        x = normal(*shape)
        for name, host in hosts.items():
            theirs = grad(lambda x, host=host: anp.sum(host(x)))
            ours = grad(lambda x, name=name: anp.sum(getattr(F, name)(x)))
            yield f"grad of {name}, {shape}", lambda f=theirs, x=x: f(x), lambda f=ours, x=x: f(x)


def torch() -> Iterator[tuple[str, Work, Work]]:
    import torch as t

    from fastnn.backends import torch as F

    t.set_num_threads(1)
    functional = t.nn.functional

    def both(module: Any, x: Any) -> Work:
        dy = t.ones_like(x)
        return lambda: t.autograd.grad(module(x), x, dy)

    for kind, shape in (
        ("BatchNorm1d", (64, 100)),
        ("BatchNorm1d", (4096, 512)),
        ("BatchNorm2d", (32, 64, 56, 56)),
        ("BatchNorm2d", (64, 128, 28, 28)),
    ):
        data = t.from_numpy(normal(*shape))
        x = data.clone().requires_grad_()
        modules = [getattr(source, kind)(shape[1]) for source in (t.nn, F)]
        yield f"{kind}: training forward, {shape}", *(lambda m=m, x=data: m(x) for m in modules)
        yield f"{kind}: forward and backward, {shape}", *(both(m, x) for m in modules)
    for name in ("gelu", "mish", "sigmoid", "relu"):
        for shape in ((64, 100), (1000, 1000)):
            data = t.from_numpy(normal(*shape))
            x = data.clone().requires_grad_()
            host, ours = getattr(functional, name), getattr(F, name)
            yield f"{name}: forward, {shape}", lambda f=host, x=data: f(x), lambda f=ours, x=data: f(x)
            yield f"{name}: forward and backward, {shape}", both(host, x), both(ours, x)


def jax() -> Iterator[tuple[str, Work, Work]]:
    import jax as j

    from fastnn.backends import jax as F

    def compiled(f: Any, x: Any) -> Work:
        f = j.jit(f)
        return lambda: f(x).block_until_ready()

    hosts = {"gelu": lambda x: j.nn.gelu(x, approximate=False), "mish": j.nn.mish, "softmax": j.nn.softmax}
    for shape in ((64, 100), (1000, 1000)):
        x = j.numpy.asarray(normal(*shape))
        for name, host in hosts.items():
            ours = getattr(F, name)
            yield f"jit({name}), {shape}", compiled(host, x), compiled(ours, x)
            yield (
                f"jit(grad({name})), {shape}",
                compiled(j.grad(lambda x, f=host: (f(x) ** 2).sum()), x),
                compiled(j.grad(lambda x, f=ours: (f(x) ** 2).sum()), x),
            )


HOSTS = {f.__name__: f for f in (cs231n, sklearn, thinc, autograd, torch, jax)}


def shown(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hosts", nargs="*", metavar="HOST", help=f"of {', '.join(HOSTS)}; all that are installed")
    parser.add_argument("--seconds", type=float, default=1.0, help="time to spend on a line (default 1)")
    options = parser.parse_args()
    if unknown := set(options.hosts) - set(HOSTS):
        parser.error(f"no adapter for {', '.join(sorted(unknown))}; there are {', '.join(HOSTS)}")
    for name in options.hosts or HOSTS:
        try:
            works = list(HOSTS[name]())
        except ImportError as error:
            print(f"\n{name}: skipped, {error}")
            continue
        print(f"\n| {name} | host | fastnn | host / fastnn |\n|---|---|---|---|")
        with fn.runtime.threads(1):
            for label, host, ours in works:
                theirs, mine = fastest(host, ours, seconds=options.seconds)
                print(f"| {label} | {shown(theirs)} | {shown(mine)} | {theirs / mine:.2f} |", flush=True)


if __name__ == "__main__":
    main()
