"""The initializers have no kernel: the reference is `fastnn.init` itself."""

from fastnn.init import (
    constant,
    fans,
    he_normal,
    he_uniform,
    lecun_normal,
    lsuv,
    normal,
    orthogonal,
    uniform,
    xavier_normal,
    xavier_uniform,
    zeros,
)

__all__ = [
    "constant",
    "fans",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lsuv",
    "normal",
    "orthogonal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
