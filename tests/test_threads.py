"""Threads: fork, concurrent callers, and where the number of threads comes from."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import assert_same_bits, run

import fastnn as fn

BIG = np.linspace(-5, 5, 400_000, dtype=np.float32)


FORK = """
import os, warnings
import numpy as np, fastnn as fn
warnings.simplefilter("ignore", DeprecationWarning)
fn.runtime.set_num_threads(2)
x = np.linspace(-5, 5, 1_000_000, dtype=np.float32)
want = fn.gelu(x)
for generation in range(3):
    child = os.fork()
    if child == 0:
        same = all(np.array_equal(fn.gelu(x), want) for _ in range(3))
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if np.array_equal(fn.gelu(x), want) else 1)
        _, status = os.waitpid(grandchild, 0)
        os._exit(0 if same and status == 0 else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert np.array_equal(fn.gelu(x), want)
print("fine")
"""


def test_a_first_call_imports_nothing():
    """A fork of another thread would inherit the lock of an import that a call has begun."""
    code = """
import sys, numpy as np, fastnn as fn
before = set(sys.modules)
fn.relu([1.0]), fn.softplus([1.0], np.float32(2)), fn.elu(np.ones(3), 2), fn.cross_entropy([[1, 2]], [0])
fn.batch_norm([[1, 2], [3, 4]], out=np.empty((2, 2)))
assert set(sys.modules) == before, set(sys.modules) - before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_warnings_of_encodings_do_not_stop_the_import():
    """The files in which the system tells of processors and quotas are read with an encoding of their own."""
    command = [sys.executable, "-X", "warn_default_encoding", "-W", "error", "-c", "import fastnn"]
    subprocess.run(command, check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_fork_after_a_threaded_call():
    assert run(FORK)[0] == "fine"


POOL = """
import multiprocessing, warnings
import numpy as np, fastnn as fn
warnings.simplefilter("ignore", DeprecationWarning)
fn.runtime.set_num_threads(2)
x = np.linspace(-5, 5, 1_000_000, dtype=np.float32)
def work(i):
    return float(fn.gelu(x * i).sum())
if __name__ == "__main__":
    alone = [work(i) for i in range(4)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(work, range(4)) == alone
    print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_multiprocessing_pool_after_a_threaded_call():
    assert run(POOL)[0] == "fine"


def test_fork_while_another_thread_computes():
    """The child computes, on threads of its own."""
    script = """
import os, sys, threading, warnings
import numpy as np, fastnn as fn
warnings.simplefilter("ignore", DeprecationWarning)
fn.runtime.set_num_threads(2)
x = np.linspace(-5, 5, 300_000, dtype=np.float32)
want = fn.gelu(x)
stop = False
def busy():
    while not stop:
        fn.gelu(x)
thread = threading.Thread(target=busy, daemon=True)
thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        right = np.array_equal(fn.gelu(x), want)
        os._exit(0 if right and (sys.platform != "linux" or len(os.listdir("/proc/self/task")) == 2) else 1)
    assert os.waitpid(child, 0)[1] == 0
stop = True
thread.join()
print("fine")
"""
    if hasattr(os, "fork"):
        assert run(script)[0] == "fine"


@pytest.mark.skipif(
    not (os.path.isdir("/proc/self/task") and fn.runtime.info()["thread support"].startswith("own pool")),
    reason="asks Linux for the threads of the process",
)
def test_a_costly_activation_makes_a_norm_worth_a_second_thread():
    """One call without the activation is too short to start a thread for, and so it was taken to be with it."""
    script = """
import os
import numpy as np, fastnn as fn
fn.runtime.set_num_threads(2)
x = np.random.default_rng(0).standard_normal((16, 64, 8, 8), np.float32)
_, mean, invstd = fn.batch_norm(x)
before = len(os.listdir("/proc/self/task"))
fn.batch_norm_backward(x, x, mean, invstd, activation="silu")
print(len(os.listdir("/proc/self/task")) - before)
"""
    assert run(script)[0] == "1"


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="asks Linux for the threads of the process")
def test_processors_chosen_for_a_running_process_hold():
    """As `taskset -acp` does: a worker that was at work keeps to it when it goes to sleep. Machines may be busy."""
    script = """
import os, threading, time
import numpy as np, fastnn as fn
def tasks():
    return [int(name) for name in os.listdir("/proc/self/task")]
def work():
    fn.mish(x, out=out)
    chosen_for_all.wait()  # no thread may end while its processors are chosen
fn.runtime.set_num_threads(2)
x = np.linspace(-5, 5, 12_000_000)
out = np.empty_like(x)
fn.mish(x, out=out)
time.sleep(0.1)
chosen_for_all = threading.Event()
thread = threading.Thread(target=work)
thread.start()
time.sleep(0.005)
now = [os.sched_getaffinity(task) for task in tasks()]
chosen = next(({cpu} for cpu in os.sched_getaffinity(0) if {cpu} not in now), os.sched_getaffinity(0))
for task in tasks():
    os.sched_setaffinity(task, chosen)
chosen_for_all.set()
thread.join()
time.sleep(0.1)
print([os.sched_getaffinity(task) for task in tasks()].count(chosen) == len(tasks()))
"""
    assert any(run(script)[0] == "True" for _ in range(3))


def test_concurrent_callers():
    """Many Python threads share the pool; every one gets its own results."""
    functions = [fn.relu, fn.sigmoid, fn.gelu, fn.silu, fn.softplus, fn.tanh]
    wants = [f(BIG) for f in functions]

    def work(i):
        f, want = functions[i % len(functions)], wants[i % len(functions)]
        with fn.runtime.threads(1 + i % 3):
            for _ in range(5):
                assert_same_bits(f(BIG), want)
                small = BIG[i : i + 50]
                assert_same_bits(f(small), want[i : i + 50])
        return i

    with fn.runtime.threads(2), ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(32))) == list(range(32))


@pytest.mark.parametrize(
    ("indices", "call"),
    [
        ("np.zeros(400_000, np.intp)", "fn.cross_entropy(x.reshape(-1, 10), indices)"),
        ("np.zeros((40_000, 100), np.intp)", "fn.maxout_backward(x.reshape(-1, 100), indices, 3)"),
    ],
)
def test_indices_that_change_during_a_call_do_no_harm(indices, call):
    """They are checked, but another thread may write there afterwards: values are anybody's guess, memory is safe."""
    script = f"""
import threading, time
import numpy as np, fastnn as fn
x = np.ones(4_000_000, np.float32)
indices = {indices}
end = time.monotonic() + 2

def change():
    while time.monotonic() < end:
        indices[len(indices) // 2 :] = 10**11
        indices[...] = 0

changing = threading.Thread(target=change)
changing.start()
while changing.is_alive():
    try:
        {call}
    except ValueError:
        pass
print("alive")
"""
    assert run(script)[0] == "alive"


def test_late_workers_disturb_nobody():
    """More threads than processors, jobs of all sizes, pauses in which workers fall asleep: each result is right."""
    script = """
import time
import numpy as np, fastnn as fn
rng = np.random.default_rng(0)
inputs = [rng.normal(size=n).astype(np.float32) for n in (9_000, 20_000, 70_000)]
wants = [fn.gelu(x) for x in inputs]
end = time.monotonic() + 6
while time.monotonic() < end:
    i, n = rng.integers(3), int(rng.integers(2, 17))
    with fn.runtime.threads(n):
        assert np.array_equal(fn.gelu(inputs[i]), wants[i])
    if rng.random() < 0.2:
        time.sleep(rng.random() * 3e-4)
print("fine")
"""
    assert run(script)[0] == "fine"


def test_a_thread_with_a_small_stack():
    """128 KB have room for all that lies on the stack. On two threads, so that parts run here and there."""
    script = """
import threading
import numpy as np, fastnn as fn
rng = np.random.default_rng(0)
def work():
    for shape in ((60, 70), (300, 2048), (40, 5000), (6, 32, 20, 20), (9, 40, 3, 3), (2000, 8)):
        for dtype in (np.float16, np.float32, np.float64):
            x, dy = (rng.normal(size=shape).astype(dtype) for _ in range(2))
            for activation in (None, "relu", "silu"):
                y, mean, invstd = fn.batch_norm(x, activation=activation)
                fn.batch_norm_backward(dy, x, mean, invstd, activation=activation)
            y, *rest = fn.layer_norm(x)
            fn.layer_norm_backward(dy, x, *rest)
            y, *rest = fn.group_norm(x, 2)
            fn.group_norm_backward(dy, x, *rest, 2)
            y = fn.softmax(x)
            fn.softmax_backward(dy, y)
            fn.gelu_backward(dy, fn.gelu(x.T).T)
            fn.prelu_backward(dy, x, rng.normal(size=shape[1]))
            y, which = fn.maxout(x, 2)
            fn.maxout_backward(y, which, 2)
            fn.preprocessing.standardize(x, axis=0)
            fn.diagnostics.activation_stats(x)
    print("fine")
fn.runtime.set_num_threads(2)
threading.stack_size(128 << 10)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    assert run(script)[0] == "fine"


def test_other_threads_run_meanwhile():
    """The interpreter lock is released: the main thread runs while another one is inside a kernel."""
    x = np.zeros(8_000_000, np.float32)
    out = np.empty_like(x)
    for _ in range(50):
        span = []

        def work(span=span):
            start = time.perf_counter()
            fn.gelu(x, out=out)
            span.extend((start, time.perf_counter()))

        ticks = []
        thread = threading.Thread(target=work)
        thread.start()
        while not span:
            ticks.append(time.perf_counter())
        thread.join()
        margin = (span[1] - span[0]) / 4
        if any(span[0] + margin < tick < span[1] - margin for tick in ticks):
            return
    raise AssertionError("no other thread ran while the kernel did")


def test_choices_of_a_thread_are_its_own():
    seen = []
    first = fn.runtime.available_isas()[0]

    def other():
        seen.append((fn.runtime.num_threads(), fn.runtime.isa()))

    default = fn.runtime.num_threads(), fn.runtime.isa()
    with fn.runtime.threads(7), fn.runtime.use_isa(first):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        if fn.runtime.info()["thread support"].startswith("none"):
            assert fn.runtime.num_threads() == 1
        else:
            assert fn.runtime.num_threads() == 7
    assert seen == [default]
    assert (fn.runtime.num_threads(), fn.runtime.isa()) == default


def test_set_num_threads():
    before = fn.runtime.num_threads()
    try:
        fn.runtime.set_num_threads(3)
        assert fn.runtime.num_threads() == 3
        with fn.runtime.threads(2):
            assert fn.runtime.num_threads() == 2
            with fn.runtime.threads(1):
                assert fn.runtime.num_threads() == 1
            assert fn.runtime.num_threads() == 2
        assert fn.runtime.num_threads() == 3
        fn.runtime.set_num_threads(10**6)  # more than there can be
        assert_same_bits(fn.relu(BIG), np.maximum(BIG, 0))
        fn.runtime.set_num_threads(np.int64(1))
        assert fn.runtime.num_threads() == 1
        for wrong, error, says in (
            (0, ValueError, "is 0"),
            (-1, ValueError, "at least 1"),
            ("2", TypeError, "'2'"),
            (True, TypeError, "bool"),
        ):
            with pytest.raises(error, match=f"number of threads.*{says}"):
                fn.runtime.set_num_threads(wrong)
    finally:
        fn.runtime.set_num_threads(before)


SHOW = "import fastnn.runtime as r; print(r.num_threads(), r.isa())"


def test_threads_from_the_environment():
    assert run(SHOW, FASTNN_NUM_THREADS="3")[0].split()[0] == "3"
    assert run(SHOW, OMP_NUM_THREADS="5")[0].split()[0] == "5"
    assert run(SHOW, OMP_NUM_THREADS="4,2")[0].split()[0] == "4"
    assert run(SHOW, FASTNN_NUM_THREADS="3", OMP_NUM_THREADS="5")[0].split()[0] == "3"
    assert run(SHOW, FASTNN_NUM_THREADS="", OMP_NUM_THREADS="5")[0].split()[0] == "5"


@pytest.mark.parametrize("value", ["0", "many", "-2", "2.5", "1_0"])
def test_bad_number_of_threads_in_the_environment(value):
    output, errors = run(SHOW, FASTNN_NUM_THREADS=value, OMP_NUM_THREADS="5")
    assert output.split()[0] == "5"
    assert "RuntimeWarning" in errors and "FASTNN_NUM_THREADS" in errors and repr(value) in errors and "5" in errors
    assert run(
        "import warnings; warnings.simplefilter('error', DeprecationWarning); " + SHOW, OMP_NUM_THREADS=value
    ) == (
        run(SHOW)[0],
        "",
    )


def test_level_from_the_environment():
    for name in fn.runtime.available_isas():
        assert run(SHOW, FASTNN_ISA=name)[0].split()[1] == name
    best = fn.runtime.available_isas()[-1]
    assert run(SHOW, FASTNN_ISA="")[0].split()[1] == best
    output, errors = run(SHOW, FASTNN_ISA="mmx")
    assert output.split()[1] == best
    assert "RuntimeWarning" in errors and "FASTNN_ISA" in errors and "'mmx'" in errors and best in errors


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_threads_follow_the_affinity():
    one = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); "
    assert run(one + SHOW)[0].split()[0] == "1"


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({"a/b/cpu.max": "150000 100000"}, "0::/a/b", 2),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "100000 100000"}, "0::/a/b", 1),
        ({"a/b/cpu.max": "100000 100000", "a/cpu.max": "300000 100000"}, "0::/a/b", 1),
        ({"a/b/cpu.max": "300000 100000", "a/cpu.max": "100000 100000"}, "0::/a/b", 1),
        ({"a/cpu.max": "max 100000"}, "0::/a", None),
        ({"cpu.max": "50000 100000"}, "0::/", 1),
        ({}, "0::/gone", None),
        (
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/a",
            3,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/\n3:memory:/", None),
        (
            {
                "cpu/a/b/cpu.cfs_quota_us": "-1",
                "cpu/a/b/cpu.cfs_period_us": "100000",
                "cpu/a/cpu.cfs_quota_us": "200000",
                "cpu/a/cpu.cfs_period_us": "100000",
            },
            "4:cpu:/a/b",
            2,
        ),
        (  # in a container without a namespace of its own, the mount is the group and the path is the host's
            {"cpu,cpuacct/cpu.cfs_quota_us": "150000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/docker/abc",
            2,
        ),
        ({"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}, "4:cpu:/a", None),
    ],
)
def test_control_group_quota(files, membership, expected, tmp_path):
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "self").write_text(membership + "\n")
    quota = fn.runtime._cgroup_quota(tmp_path / "cgroup", tmp_path / "self")
    assert quota == (sys.maxsize if expected is None else expected)


def test_the_quota_bounds_the_processors(monkeypatch):
    monkeypatch.setattr(fn.runtime, "_affinity", lambda: 8)
    for quota, expected in ((3, 3), (sys.maxsize, 8)):
        monkeypatch.setattr(fn.runtime, "_cgroup_quota", lambda quota=quota: quota)
        assert fn.runtime._available_processors() == expected


def test_more_threads_than_any_build_takes_are_no_error():
    former = fn.runtime.num_threads()
    try:
        fn.runtime.set_num_threads(10**6)
        assert fn.runtime.num_threads() in (1, 256)
    finally:
        fn.runtime.set_num_threads(former)
