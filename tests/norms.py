"""What the tests of the normalizations share: comparisons, and arrays in every layout."""

import numpy as np


def close(result, expected, dtype, scale=None):
    """Within a few roundings of the dtype, beside the largest element or the scale given."""
    expected = np.asarray(expected, np.float64)
    scale = np.max(np.abs(expected)) if scale is None else scale
    tolerance = {2: 1e-3, 4: 4e-7, 8: 1e-12}[np.dtype(dtype).itemsize]
    return np.max(np.abs(np.asarray(result, np.float64) - expected), initial=0) <= tolerance * max(1.0, scale)


def same_bits(a, b):
    return all(p.dtype == q.dtype and p.tobytes() == q.tobytes() for p, q in zip(a, b, strict=True))


def near(result, exact, terms=0.0):
    """Within 1e-5 of the largest element; or subnormal, or nothing but what rounding leaves of its terms."""
    floor = 2 * np.finfo(np.float32).smallest_subnormal + 4e-12 * terms
    return np.max(np.abs(result - exact)) <= 1e-5 * np.max(np.abs(exact)) + floor


def layouts(x):
    swapped = x.astype(x.dtype.newbyteorder())
    spaced = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)[..., ::2]
    spaced[...] = x
    memory = np.zeros(x.nbytes + 1, np.uint8)[1:]
    misaligned = memory.view(x.dtype).reshape(x.shape)
    misaligned[...] = x
    return {
        "fortran": np.asfortranarray(x),
        "swapped": swapped,
        "spaced": spaced,
        "misaligned": misaligned,
        "reversed": x[::-1].copy()[::-1],
        "permuted": np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
        "list": x.tolist(),
    }
