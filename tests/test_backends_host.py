"""What all adapters share: lazy import, absent hosts, untested versions, patching and unpatching."""

import subprocess
import sys
import threading
import warnings

import pytest

import fastnn.backends
from fastnn.backends import _host

HOSTS = sorted(_host.TESTED)


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_the_package_imports_no_host():
    code = f"""
import sys, fastnn.backends
assert not {{"sklearn", *{HOSTS}}} & set(sys.modules), sorted(sys.modules)
assert set({HOSTS}) | {{"cs231n"}} == set(fastnn.backends.__all__) <= set(dir(fastnn.backends))
fastnn.backends.cs231n.relu_forward
assert not {{"sklearn", *{HOSTS}}} & set(sys.modules)
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("host", HOSTS)
def test_an_absent_host_says_what_to_install(host):
    result = run(f"import sys; sys.modules['{host}'] = None; import fastnn.backends.{host}")
    assert f"ImportError: fastnn.backends.{host} needs the package {_host.TESTED[host][0]}" in result.stderr
    assert f"pip install {_host.TESTED[host][0]}" in result.stderr


def test_an_unknown_adapter_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"keras.*autograd, cs231n, jax"):
        fastnn.backends.keras  # noqa: B018


@pytest.mark.parametrize("version", ["0.0.1", "99.1", "99.0.dev0+g123"])
@pytest.mark.parametrize("host", HOSTS)
def test_an_untested_version_warns_and_names_the_versions(host, version):
    distribution, first, beyond = _host.TESTED[host]
    with pytest.warns(
        RuntimeWarning, match=f"{distribution} from {first} up to.* {beyond}; this is {distribution} {version[:4]}"
    ):
        _host.check_version(host, version)


@pytest.mark.parametrize("host", HOSTS)
def test_the_first_untested_version_warns(host):
    with pytest.warns(RuntimeWarning, match="was tested with"):
        _host.check_version(host, _host.TESTED[host][2])


def test_a_tested_version_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for host, (_, first, beyond) in _host.TESTED.items():
            _host.check_version(host, first)
            _host.check_version(host, f"{first}.99+cpu")
            assert _host._release(first) < _host._release(beyond)


@pytest.fixture
def host():
    return {"a": 1, "b": 2, "c": 3}


@pytest.fixture
def patch(host):
    return _host.Patch((host, {"a": 10, "b": 20}))


ORIGINAL, PATCHED = {"a": 1, "b": 2, "c": 3}, {"a": 10, "b": 20, "c": 3}


def test_install_and_uninstall_in_any_order(host, patch):
    patch.uninstall()
    assert host == ORIGINAL
    patch.install()
    patch.install()
    assert host == PATCHED
    patch.uninstall()
    assert host == ORIGINAL
    patch.uninstall()
    assert host == ORIGINAL


def test_accelerated_blocks_nest_and_survive_exceptions(host, patch):
    with pytest.raises(ZeroDivisionError), patch.accelerated():
        with patch.accelerated():
            pass
        assert host == PATCHED
        raise ZeroDivisionError
    assert host == ORIGINAL
    patch.install()
    with patch.accelerated():
        assert host == PATCHED
    assert host == PATCHED, "a block inside install() must not undo it"
    patch.uninstall()
    assert host == ORIGINAL


def test_somebody_elses_patch_on_top_is_left_alone(host, patch):
    patch.install()
    host["a"] = "theirs"
    patch.uninstall()
    assert host == {"a": "theirs", "b": 2, "c": 3}


def test_blocks_that_overlap_between_threads(host, patch):
    inside, leave = threading.Event(), threading.Event()

    def worker():
        with patch.accelerated():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=worker)
    with patch.accelerated():
        thread.start()
        assert inside.wait(10)
    assert host == PATCHED, "the other thread is still inside"
    leave.set()
    thread.join()
    assert host == ORIGINAL


def test_many_threads_leave_the_host_as_it_was(host, patch):
    def worker():
        for _ in range(200):
            with patch.accelerated():
                assert host == PATCHED

    threads = [threading.Thread(target=worker) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert host == ORIGINAL
