"""The lecture: its network package, the loader of CIFAR-10, every experiment's verdict, and the command end to end."""

from __future__ import annotations

import copy
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

import fastnn
from fastnn.lecture import (
    BACKENDS,
    Activation,
    BatchNorm,
    Dense,
    LectureError,
    Network,
    cifar10,
    digits,
    experiments,
    report,
    train,
)
from fastnn.lecture.cli import _single_threaded_blas
from fastnn.lecture.experiment import Check, Context, Figure, Result, Table, percent, short
from fastnn.lecture.network import batches

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread():
    with _single_threaded_blas():
        yield


@pytest.fixture(scope="module")
def data():
    return digits(0)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]


# ---------------------------------------------------------------------------------------------- the network package


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_network_has_the_gradients_of_its_loss(backend, activation, batch_norm):
    network = Network.mlp([5, 7, 6, 3], backend, activation=activation, batch_norm=batch_norm, rng=1, dtype=np.float64)
    rng = np.random.default_rng(2)
    x, dy = rng.standard_normal((6, 5)), rng.standard_normal((6, 3))
    assert backend.diagnostics.gradient_check(network.forward, network.backward, x, dy) < 1e-4
    labels = np.array([0, 1, 2, 2, 1, 0])
    network.loss(x, labels)
    for dense in network.dense():
        at = (1, 2)
        analytic, kept, losses = dense.dW[at], dense.W[at], []
        for move in (1e-6, -1e-6):
            dense.W[at] = kept + move
            losses.append(network.loss(x, labels))
        dense.W[at] = kept
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(analytic, rel=1e-4, abs=1e-8)


def test_network_learns_the_digits(backend, data):
    x, test_x = data.standardized()
    network = Network.mlp([64, 50, 10], backend, batch_norm=True, rng=0)
    history = train(network, x, data.labels, epochs=3, lr=0.1, rng=0)
    assert history.final() < 0.2 < history.losses[0]
    assert network.accuracy(test_x, data.test_labels) > 0.93


def test_training_depends_on_the_seed_alone(data):
    def losses(seed):
        network = Network.mlp([64, 20, 10], fastnn, rng=seed)
        return train(network, data.x, data.labels, epochs=1, lr=0.1, rng=seed).losses

    assert losses(3) == losses(3) != losses(4)


def test_diverging_training_stops(data):
    network = Network.mlp([64, 20, 10], fastnn, rng=0)
    history = train(network, data.x * 1e6, data.labels, epochs=3, lr=1e6, rng=0)
    assert history.diverged and history.final() == np.inf and len(history.losses) < 60


def test_lsuv_gives_every_layer_unit_variance(backend, data):
    x = data.standardized()[0][:256]
    network = Network.mlp([64, 40, 40, 10], backend, rng=0)
    backend.init.lsuv(network, x, rng=0)
    deviations = [y.std() for y, layer in zip(network.outputs(x), network.layers, strict=True) if hasattr(layer, "W")]
    assert deviations == pytest.approx([1, 1, 1], abs=0.02)


def test_layers_say_what_is_wrong():
    with pytest.raises(ValueError, match="fan_in, fan_out"):
        Dense(np.zeros((3, 4)), np.zeros(3))
    with pytest.raises(ValueError, match=r"'gelu_tanh'.*elementwise activation"):
        Activation(fastnn, "gelu_tanh")
    for layer in (Dense(np.zeros((3, 4)), np.zeros(4)), Activation(fastnn, "relu"), BatchNorm(fastnn, 3)):
        with pytest.raises(RuntimeError, match="forward"):
            layer.backward(np.zeros((2, 4)))


def test_accuracy_counts_nan_as_wrong():
    network = Network([Dense(np.eye(2), np.zeros(2))], fastnn)
    with np.errstate(invalid="ignore"):
        assert network.accuracy(np.array([[np.nan, 0], [2, 1], [1, 2], [3, 0]]), np.array([0, 0, 0, 0])) == 0.5


def test_batches_leave_out_the_short_rest():
    chosen = list(batches(11, 4, np.random.default_rng(0)))
    assert [len(batch) for batch in chosen] == [4, 4] and len(np.unique(chosen)) == 8
    assert sorted(np.concatenate(list(batches(8, 4, np.random.default_rng(0))))) == list(range(8))


def test_the_bias_is_of_hidden_layers(backend):
    network = Network.mlp([4, 3, 2, 5], backend, bias=0.25, rng=0)
    assert [set(dense.b.tolist()) for dense in network.dense()] == [{0.25}, {0.25}, {0.0}]


# --------------------------------------------------------------------------------------------------------- the data


def test_no_test_image_is_trained_on(data):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    everything = np.c_[bunch.data / 16, bunch.target]
    found = np.r_[np.c_[data.x, data.labels], np.c_[data.test_x, data.test_labels]]
    np.testing.assert_array_equal(found[np.lexsort(found.T)], everything[np.lexsort(everything.T)])


def test_the_test_images_are_standardized_as_the_training_images_are(data):
    x, test_x = data.standardized()
    mean = data.x.mean(axis=0, dtype=np.float64)
    scale = (data.x - mean).std()
    np.testing.assert_allclose(x, (data.x - mean) / scale, atol=1e-5)
    np.testing.assert_allclose(test_x, (data.test_x - mean) / scale, atol=1e-5)


def write_cifar(folder, per_batch=60, protocol=2):
    """Files in the format of the real ones: pickled dicts with bytes as keys, 3072 bytes an image, planes of colour."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        labels = rng.integers(10, size=per_batch)
        planes = rng.integers(0, 120, (per_batch, 3, 1024)) + 12 * labels[:, None, None]
        batch = {
            b"batch_label": name.encode(),
            b"labels": labels.tolist(),
            b"data": planes.reshape(per_batch, 3072).astype(np.uint8),
            b"filenames": [b"%d.png" % i for i in range(per_batch)],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return folder


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_cifar10_batches(tmp_path, protocol):
    write_cifar(tmp_path, protocol=protocol)
    data = cifar10(tmp_path, seed=1, limit=100)
    assert data.x.shape == (100, 3072) and data.test_x.shape == (25, 3072) and data.image_shape == (32, 32, 3)
    assert data.x.dtype == np.float32 and 0 <= data.x.min() and data.x.max() <= 1
    everything = cifar10(tmp_path, limit=300)
    batch = pickle.loads((tmp_path / "data_batch_1").read_bytes())
    plane = batch[b"data"][0].reshape(3, 32, 32)
    wanted = (plane.transpose(1, 2, 0) / np.float32(255)).reshape(-1)
    found = np.flatnonzero((np.abs(everything.x - wanted) < 1e-6).all(axis=1))
    assert len(found) == 1 and everything.labels[found[0]] == batch[b"labels"][0]


def test_cifar10_tests_with_the_test_batch(tmp_path):
    write_cifar(tmp_path)
    data = cifar10(tmp_path, seed=1, limit=300)
    batch = pickle.loads((tmp_path / "test_batch").read_bytes())
    rows = batch[b"data"].reshape(-1, 3, 1024).swapaxes(1, 2).reshape(-1, 3072) / np.float32(255)
    found = np.c_[data.test_x, data.test_labels]
    wanted = np.c_[rows, batch[b"labels"]]
    np.testing.assert_allclose(found[np.lexsort(found.T)], wanted[np.lexsort(wanted.T)], atol=1e-6)


def test_cifar10_finds_the_folder_of_the_archive(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py")
    assert len(cifar10(tmp_path).x) == 300


def test_cifar10_errors_name_the_file(tmp_path):
    with pytest.raises(LectureError, match=r"has no data_batch_1.*cifar-10-python\.tar\.gz"):
        cifar10(tmp_path)
    write_cifar(tmp_path)
    for content, reason in (
        (b"no pickle", "no CIFAR-10 Python batch"),
        (pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [0, 1]}), r"uint8 \(2, 5\).*N, 3072"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}), "labels are not 0 to 9"),
        (pickle.dumps({b"labels": [1]}), "data"),
        (pickle.dumps([1, 2]), "no CIFAR-10 Python batch"),
    ):
        (tmp_path / "data_batch_3").write_bytes(content)
        with pytest.raises(LectureError, match=f"data_batch_3 is .*{reason}|data_batch_3.*{reason}"):
            cifar10(tmp_path)


def test_cifar10_runs_nothing_that_a_file_asks_for(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    write_cifar(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Attack()}))
    with pytest.raises(LectureError, match=r"test_batch.*mkdir"):
        cifar10(tmp_path)
    assert not (tmp_path / "attacked").exists()


# -------------------------------------------------------------------------------------------------- the experiments


def test_random_numbers_depend_on_the_seed_and_their_purpose(data):
    def drawn(seed, purpose):
        return Context(fastnn, data, seed).rng(purpose).random()

    assert drawn(1, "a") == drawn(1, "a")
    assert len({drawn(1, "a"), drawn(2, "a"), drawn(1, "b")}) == 3
    assert [Context(fastnn, data, quick=quick).pick("full", "quick") for quick in (False, True)] == ["full", "quick"]


def failures(checks, right, *wrong):
    """Which checks fail: none for the right facts, then by each of the changes (path, value) alone."""
    assert all(check.held for check in checks(right))
    result = []
    for (*path, last), value in wrong:
        facts = copy.deepcopy(right)
        at = facts
        for key in path:
            at = at[key]
        at[last] = value
        result.append([i for i, check in enumerate(checks(facts)) if not check.held])
    return result


def test_the_claims_of_activations_can_fail():
    module = experiments.load("activations")
    functions = {
        "sigmoid": {"mean": 0.5, "low": 5e-5, "high": 5e-5},
        "tanh": {"mean": 0.01, "low": 1e-8, "high": 1e-8},
        "relu": {"mean": 0.4, "low": 0.0, "high": 1.0},
        "leaky_relu": {"mean": 0.4, "low": 0.01, "high": 1.0},
    }
    right = {"facts": functions, "left": {"sigmoid": 1e-6, "relu": 0.1}}
    assert failures(
        lambda facts: module._checks(**facts),
        right,
        (("facts", "sigmoid", "low"), 2e-3),
        (("facts", "tanh", "high"), -2e-3),
        (("facts", "relu", "high"), 0.9),
        (("facts", "relu", "low"), 0.1),
        (("facts", "leaky_relu", "low"), 0.0),
        (("facts", "sigmoid", "mean"), 0.0),
        (("facts", "relu", "mean"), 0.0),
        (("facts", "tanh", "mean"), -0.1),
        (("left", "sigmoid"), 1e-3),
    ) == [[0], [0], [1], [1], [2], [3], [3], [3], [4]]


def test_the_claims_of_preprocessing_can_fail():
    module = experiments.load("preprocessing")
    shapes = {
        "original": {"correlation": 0.9, "top": 0.9},
        "mean image off": {"mean": 1e-7, "top": 0.2},
        "decorrelated": {"correlation": 1e-6},
        "whitened": {"correlation": 1e-6, "low": 0.999, "high": 1.001},
    }
    loss = dict.fromkeys(module.TRAINED, 0.1) | {"original": 0.2}

    def checks(facts):
        outcomes = {(name, 0.1): module.Outcome(np.zeros(1), value, 1.0) for name, value in facts["loss"].items()}
        return module._checks(facts["shape"], outcomes, dict.fromkeys(facts["loss"], 0.1))

    assert failures(
        checks,
        {"shape": shapes, "loss": loss},
        (("shape", "mean image off", "mean"), 1e-3),
        (("shape", "decorrelated", "correlation"), 0.01),
        (("shape", "whitened", "correlation"), 0.01),
        (("shape", "original", "correlation"), 1e-4),
        (("shape", "whitened", "low"), 0.9),
        (("shape", "whitened", "high"), 1.1),
        (("shape", "original", "top"), 0.4),
        (("shape", "mean image off", "top"), 0.8),
        (("loss", "mean image off"), 0.3),
        (("loss", "channel mean off"), 0.3),
    ) == [[0], [1], [1], [1], [2], [2], [3], [3], [4], [5]]


def test_a_claim_holds_where_it_holds_on_both_backends(tmp_path, monkeypatch, capsys):
    from fastnn.__main__ import main

    contexts = []

    def run(name, context):
        contexts.append(context)
        check = Check("expected", "measured", context.backend is fastnn)
        return Result(name, name, "claim", context.backend.__name__, (check,), (), ())

    monkeypatch.setattr(experiments, "run", run)
    words = ["lecture", "--only", "zigzag", "--backend", "both", "--seed", "5", "--out", str(tmp_path)]
    assert main(words) == 0
    assert "0 of 1 claims held" in capsys.readouterr().out
    assert [context.backend for context in contexts] == list(BACKENDS.values())
    assert all(context.seed == 5 and np.array_equal(context.data.x, digits(5).x) for context in contexts)


@pytest.mark.parametrize("name", experiments.NAMES)
def test_the_claim_holds(name, backend, data, monkeypatch):
    if name == "speed" and backend is not fastnn:
        pytest.skip("speed runs on both backends by itself")
    default_rng = np.random.default_rng

    def seeded(seed=None):
        assert seed is not None, "not every random number of this run comes from --seed"
        return default_rng(seed)

    monkeypatch.setattr(np.random, "default_rng", seeded)
    result = experiments.run(name, Context(backend, data, quick=True))
    assert result.held, result.verdict
    assert result.name == name and result.checks and result.tables and result.figures
    for table in result.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    for figure in result.figures:
        assert figure.png.startswith(b"\x89PNG") and figure.caption


def test_more_activations_on_request(data):
    result = experiments.run("activations", Context(fastnn, data, quick=True, activations=("mish", "selu")))
    assert [row[0] for row in result.tables[0].rows] == ["sigmoid", "tanh", "relu", "leaky_relu", "mish", "selu"]
    assert dict((name, lost) for name, _, lost in result.tables[1].rows)["selu"] == "0 %"  # its gradient grows


def test_verdicts_follow_from_the_checks():
    checks = (Check("one is small", "0.1", True), Check("two is large", "0.2", False))
    result = Result("x", "X", "both", "fastnn", checks, (), ())
    assert not result.held and result.verdict == "Did not hold: 1 of 2 checks failed (two is large: 0.2)"
    assert replace(result, checks=checks[:1]).verdict == "Held: 1 of 1 checks"


def test_numbers_are_short():
    assert [short(v) for v in (0, 0.25, 1, 123456, 4.54e-5, float("inf"))] == [
        "0",
        "0.25",
        "1",
        "1.2e5",
        "4.5e-5",
        "diverged",
    ]
    assert [percent(v) for v in (0, 0.004, 0.5, 0.999, 1)] == ["0 %", "0.4 %", "50 %", "99.9 %", "100 %"]


# -------------------------------------------------------------------------------------------------------- the report


class Page(HTMLParser):
    """What a browser would fetch, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for key, value in attributes if key in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_self_contained_and_escaped():
    figure = Figure("f", 'a < b & "c"', b"\x89PNG")
    table = Table("t", ("<script>", "b"), (("1", "2"),), "note")
    first = Result("x", "X < Y", "claim & <b>", "fastnn", (Check("e", "<m>", True),), (table,), (figure,), ("n",))
    second = replace(first, backend="reference", checks=(Check("e", "other", False),))
    text = report.page([[first, second]], report.Facts("command", "data", 2, {"machine": "<cpu>"}))
    page = Page(text)
    assert not page.open
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in page.sources)
    assert "<script>" not in text and "0 of 1 claims held; 1 of 2 experiments finished so far" in text
    assert "measured on fastnn" in text and "measured on reference" in text and "did not hold" in text


# ------------------------------------------------------------------------------------------------------- the command


def command(*words, **options):
    return [sys.executable, "-m", "fastnn", "lecture", *map(str, words)], {
        "cwd": ROOT,
        "env": {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **options},
        "text": True,
    }


def lecture(*words, **options):
    line, settings = command(*words, **options)
    return subprocess.run(line, capture_output=True, timeout=120, **settings)


def test_command_end_to_end(tmp_path):
    out = tmp_path / "new" / "folder"
    done = lecture(
        "--quick", "--only", "zigzag", "--only", "activations", "--seed", 3, "--backend", "both", "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert "2 of 2 claims held" in done.stdout and done.stdout.count("Held: 5 of 5 checks") == 2
    text = (out / "report.html").read_text(encoding="utf-8")
    assert not Page(text).open and "--only zigzag --only activations --backend both" in text
    assert "measured on fastnn.reference" in text and "2 of 2 claims held" in text and "--seed 3" in text
    assert (out / "activations-curves.png").stat().st_size > 10_000
    assert not [name for name in os.listdir(out) if name.startswith(".") or name.endswith(".part")]


def test_command_with_cifar10(tmp_path):
    folder = write_cifar(tmp_path / "data", per_batch=120)
    done = lecture("--quick", "--only", "activations", "--cifar10", folder, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"CIFAR-10, 600 training and 120 test images of 32 x 32 x 3", text)


def test_interrupted_command_leaves_what_was_finished(tmp_path):
    line, settings = command("--only", "activations", "--only", "initialization", "--out", tmp_path)
    # a shell starts its background jobs with SIGINT ignored, which a test run there would hand on
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        waited = time.monotonic() + 60
        while not (tmp_path / "report.html").exists() and time.monotonic() < waited:
            time.sleep(0.05)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "holds the 1 finished of 2 experiments" in errors
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 of 1 claims held; interrupted after 1 of 2 experiments" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cifar10", "/nowhere"), "/nowhere has no data_batch_1"),
        (("--out", f"{__file__}/folder"), "cannot write to .*choose another folder with --out"),
        (("--only", "nothing"), "invalid choice: 'nothing'"),
        (("--seed", "-1"), "give an integer from 0 on"),
        (("--activations", "foo"), "'foo' is not one of sigmoid"),
        (("--backend", "torch"), "invalid choice: 'torch'"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(tmp_path, words, message, monkeypatch, capsys):
    from fastnn.__main__ import main

    monkeypatch.chdir(tmp_path)
    try:
        code = main(["lecture", *words])
    except SystemExit as error:  # argparse's own
        code = error.code
    errors = capsys.readouterr().err
    assert code == 2 and re.search(message, errors) and "Traceback" not in errors
    assert len(errors.strip().splitlines()) == 1 or errors.startswith("usage:")


@pytest.mark.parametrize("module", ["rich", "matplotlib", "sklearn"])
def test_missing_extra_is_named(tmp_path, module):
    code = f"import sys; sys.modules[{module!r}] = None; from fastnn.__main__ import main; sys.exit(main(['lecture']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    distribution = {"sklearn": "scikit-learn"}.get(module, module)
    assert f"pip install {distribution}" in done.stderr and len(done.stderr.splitlines()) == 1


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(LectureError, match="pip install scikit-learn"):
        digits()


def test_help_does_not_need_the_extras():
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['rich'] = None; "
        "from fastnn.__main__ import main; main(['lecture', '-h'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--cifar10 DIR" in done.stdout
