"""Real data for the experiments: scikit-learn's handwritten digits, or CIFAR-10 from its original Python batches."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastnn.lecture.errors import LectureError

CIFAR_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR_TEST = "test_batch"
CIFAR_SHAPE = (32, 32, 3)
CIFAR_PIXELS = 32 * 32 * 3


@dataclass(frozen=True)
class Data:
    """Images as rows of pixels in [0, 1] (float32), channels last within a row, and their labels from 0."""

    name: str
    x: np.ndarray
    labels: np.ndarray
    test_x: np.ndarray
    test_labels: np.ndarray
    image_shape: tuple[int, int, int]  # height, width, channels

    @property
    def features(self) -> int:
        return int(self.x.shape[1])

    @property
    def classes(self) -> int:
        return int(max(self.labels.max(), self.test_labels.max())) + 1

    def standardized(self) -> tuple[np.ndarray, np.ndarray]:
        """Training and test images with the training images' mean image taken off, over one common deviation.

        One deviation for all pixels, because some pixels of the digits hardly ever change.
        """
        mean = self.x.mean(axis=0, dtype=np.float64)
        scale = float((self.x - mean).std())
        return ((self.x - mean) / scale).astype(np.float32), ((self.test_x - mean) / scale).astype(np.float32)


def digits(seed: int = 0, limit: int | None = None) -> Data:
    """The 1797 handwritten digits (8 x 8 pixels) that come with scikit-learn; a fifth is kept for testing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise LectureError(f"the digits come with scikit-learn ({error}): pip install scikit-learn") from error

    bunch = load_digits()
    images = (bunch.data / 16.0).astype(np.float32)
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(images))
    test, rest = order[: len(order) // 5], order[len(order) // 5 :][:limit]
    return Data("scikit-learn digits", images[rest], labels[rest], images[test], labels[test], (8, 8, 1))


class _BatchUnpickler(pickle.Unpickler):
    """Loads what a CIFAR batch consists of (dicts, lists, bytes, arrays), and refuses to call anything else."""

    _reconstruct: Any = np.zeros(0).__reduce__()[0]

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module.endswith("multiarray"):
            return self._reconstruct
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            import _codecs

            return _codecs.encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            content = _BatchUnpickler(file, encoding="bytes").load()
        content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        pixels = np.asarray(content["data"])
        labels = np.asarray(content["labels"], dtype=np.int64)
    except OSError as error:
        raise LectureError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise LectureError(f"{path} is no CIFAR-10 Python batch ({error or type(error).__name__})") from error
    if (
        pixels.ndim != 2
        or pixels.shape[1] != CIFAR_PIXELS
        or pixels.dtype != np.uint8
        or labels.shape != pixels.shape[:1]
    ):
        raise LectureError(
            f"{path} is no CIFAR-10 Python batch: data is {pixels.dtype} {pixels.shape} with {labels.shape} labels, "
            f"where uint8 (N, {CIFAR_PIXELS}) with N labels is expected"
        )
    if len(labels) == 0 or labels.min() < 0 or labels.max() > 9:
        raise LectureError(f"{path} is no CIFAR-10 Python batch: its labels are not 0 to 9")
    return pixels, labels


def _as_rows(pixels: np.ndarray) -> np.ndarray:
    """CIFAR's rows hold the red plane, then green, then blue; ours hold the three values of a pixel together."""
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images.reshape(len(pixels), CIFAR_PIXELS).astype(np.float32) / np.float32(255)


def cifar10(directory: str | Path, seed: int = 0, limit: int = 2000) -> Data:
    """CIFAR-10 from its folder of batches: ``limit`` training and a quarter as many test images, drawn at random."""
    folder = Path(directory).expanduser()
    if (folder / "cifar-10-batches-py").is_dir():
        folder = folder / "cifar-10-batches-py"
    missing = [name for name in (*CIFAR_TRAIN, CIFAR_TEST) if not (folder / name).is_file()]
    if missing:
        raise LectureError(
            f"{folder} has no {missing[0]}: --cifar10 takes the folder that cifar-10-python.tar.gz unpacks to "
            f"({CIFAR_TRAIN[0]} to {CIFAR_TRAIN[-1]} and {CIFAR_TEST})"
        )
    rng = np.random.default_rng(seed)
    parts = [_read_batch(folder / name) for name in CIFAR_TRAIN]
    pixels, labels = np.concatenate([p for p, _ in parts]), np.concatenate([n for _, n in parts])
    test_pixels, test_labels = _read_batch(folder / CIFAR_TEST)
    chosen = rng.permutation(len(pixels))[:limit]
    test_chosen = rng.permutation(len(test_pixels))[: max(1, limit // 4)]
    return Data(
        "CIFAR-10", _as_rows(pixels[chosen]), labels[chosen], _as_rows(test_pixels[test_chosen]),
        test_labels[test_chosen], CIFAR_SHAPE,
    )  # fmt: skip
