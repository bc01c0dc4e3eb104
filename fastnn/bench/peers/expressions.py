"""One set of formulas for the peers that compile an expression: numexpr and numba."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from fastnn.bench.cases import Arrays, Call, Case
from fastnn.bench.peers.base import Peer, is_map, out_of

FORWARD = {
    "sigmoid": "1 / (1 + exp(-x))",
    "tanh": "tanh(x)",
    "relu": "where(x > 0, x, zero)",
    "leaky_relu": "where(x > 0, x, slope * x)",
    "relu6": "where(x < 0, zero, where(x > 6, six, x))",
    "hardtanh": "where(x < -1, -one, where(x > 1, one, x))",
    "hardsigmoid": "where(x < -3, zero, where(x > 3, one, (x + 3) * sixth))",
    "hardswish": "where(x < -3, zero, where(x > 3, x, x * (x + 3) * sixth))",
    "elu": "where(x > 0, x, expm1(x))",
    "celu": "where(x > 0, x, expm1(x))",
    "selu": "where(x > 0, scale * x, scale_alpha * expm1(x))",
    "gelu": "half * x * (1 + erf(x * root_half))",
    "gelu_tanh": "half * x * (1 + tanh(gelu_c * x * (1 + gelu_a * x * x)))",
    "silu": "x / (1 + exp(-x))",
    "mish": "x * tanh(log1p(exp(x)))",
    "softsign": "x / (1 + abs(x))",
    "log_sigmoid": "-log1p(exp(-x))",
    "softplus": "log1p(exp(x))",
}
BACKWARD = {
    "sigmoid": "dy * s * (1 - s)",
    "tanh": "dy * (1 - s * s)",
    "relu": "where(s > 0, dy, zero)",
    "leaky_relu": "where(s > 0, dy, slope * dy)",
    "relu6": "where((s > 0) & (s < 6), dy, zero)",
    "hardtanh": "where((s > -1) & (s < 1), dy, zero)",
    "hardsigmoid": "where((s > -3) & (s < 3), dy * sixth, zero)",
    "hardswish": "where(s <= -3, zero, where(s >= 3, dy, dy * (s + s + 3) * sixth))",
    "elu": "where(s > 0, dy, dy * exp(s))",
    "celu": "where(s > 0, dy, dy * exp(s))",
    "selu": "where(s > 0, scale * dy, scale_alpha * dy * exp(s))",
    "gelu": "dy * (half * (1 + erf(s * root_half)) + s * gelu_p * exp(-half * s * s))",
    "softsign": "dy / ((1 + abs(s)) * (1 + abs(s)))",
    "log_sigmoid": "dy / (1 + exp(s))",
    "softplus": "dy / (1 + exp(-s))",
    "silu": "dy * (1 + s * (1 - 1 / (1 + exp(-s)))) / (1 + exp(-s))",
    "gelu_tanh": "dy * half * ((1 + tanh(gelu_c * s * (1 + gelu_a * s * s))) + s"
    " * (1 - tanh(gelu_c * s * (1 + gelu_a * s * s)) * tanh(gelu_c * s * (1 + gelu_a * s * s)))"
    " * gelu_c * (1 + gelu_3a * s * s))",
    "mish": "dy * (tanh(log1p(exp(s))) + s * (1 - tanh(log1p(exp(s))) * tanh(log1p(exp(s)))) / (1 + exp(-s)))",
}
# Constants are variables, so that they have the dtype of the data: a bare 0.5 would turn float32 into double.
CONSTANTS = {
    "zero": 0.0,
    "one": 1.0,
    "six": 6.0,
    "sixth": 1 / 6,
    "half": 0.5,
    "slope": 0.01,
    "scale": 1.0507009873554805,
    "scale_alpha": 1.0507009873554805 * 1.6732632423543772,
    "root_half": 0.7071067811865476,
    "gelu_p": 0.3989422804014327,
    "gelu_c": 0.7978845608028654,
    "gelu_a": 0.044715,
    "gelu_3a": 0.134145,
}


def _expression(case: Case) -> str | None:
    return (FORWARD if case.direction == "forward" else BACKWARD).get(case.op.name) if is_map(case) else None


def _uses(expression: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", expression) is not None


def _arrays(case: Case, data: Arrays) -> dict[str, Any]:
    return {"x": data["x"]} if case.direction == "forward" else {"dy": data["dy"], "s": data["saved"]}


class NumExpr(Peer):
    name = "numexpr"

    def load(self) -> str:
        import numexpr

        self._cache: dict[tuple[str, str], Any] = {}
        return str(numexpr.__version__)

    def set_threads(self, count: int) -> None:
        import numexpr

        numexpr.set_num_threads(count)

    def prepare(self, case: Case, data: Arrays) -> Call | None:
        import numexpr

        expression = _expression(case)
        if expression is None or case.dtype not in ("float32", "float64") or "erf(" in expression:
            return None
        kind = np.dtype(case.dtype).type
        values = dict(_arrays(case, data))
        values.update({name: kind(value) for name, value in CONSTANTS.items() if _uses(expression, name)})
        compiled = self._cache.get((expression, case.dtype))
        if compiled is None:
            type_of = numexpr.necompiler.getType(np.empty(1, kind))
            signature = [(name, type_of) for name in values]
            compiled = self._cache[expression, case.dtype] = numexpr.NumExpr(expression, signature)
        out = out_of(case, data)
        kwargs = {"ex_uses_vml": False} if out is None else {"out": out, "ex_uses_vml": False}
        return Call(compiled, tuple(values.values()), kwargs)


class Numba(Peer):
    name = "numba"
    slow_to_compile = True

    def load(self) -> str:
        import numba

        self._cache: dict[tuple[str, str, bool, bool], Any] = {}
        self._threads, self._most = 1, numba.get_num_threads()
        return str(numba.__version__)

    def set_threads(self, count: int) -> None:
        import numba

        self._threads = count
        numba.set_num_threads(min(count, self._most))

    def prepare(self, case: Case, data: Arrays) -> Call | None:
        expression = _expression(case)
        if expression is None or case.dtype not in ("float32", "float64"):
            return None
        out = out_of(case, data)
        key = (expression, case.dtype, self._threads > 1, out is None)
        function = self._cache.get(key)
        if function is None:
            function = self._cache[key] = self._compile(*key, list(_arrays(case, data)))
        arrays = tuple(_arrays(case, data).values())
        return Call(function, arrays if out is None else (*arrays, out))

    def _compile(self, expression: str, dtype: str, parallel: bool, fresh: bool, names: list[str]) -> Any:
        import math

        import numba

        @numba.njit(inline="always")
        def where(condition: Any, a: Any, b: Any) -> Any:
            return a if condition else b

        kind = np.dtype(dtype).type
        space: dict[str, Any] = {name: kind(value) for name, value in CONSTANTS.items()}
        space |= {name: getattr(math, name) for name in ("exp", "expm1", "log1p", "tanh", "erf")}
        space |= {"where": where, "abs": abs, "prange": numba.prange, "empty_like": np.empty_like}
        # a bare integer is int64 to numba and would turn float32 into double
        space |= {f"number_{n}": kind(n) for n in (0, 1, 3, 6)}
        expression = re.sub(r"\b(\d)\b", r"number_\1", expression.replace("&", "and"))
        loads = "; ".join(f"{name} = {name}_[i]" for name in names)
        arguments = ", ".join([f"{name}_" for name in names] + ["out"] * (not fresh))
        allocate = f"out = empty_like({names[0]}_)" if fresh else ""  # compiled, it costs less than a call
        body = f"for i in prange(out.size):\n  {loads}\n  out[i] = {expression}"
        source = f"def loop({arguments}):\n {allocate}\n {body}\n return out\n"
        exec(source, space)  # the formulas above, nothing from outside
        return numba.njit(fastmath=True, parallel=parallel, error_model="numpy")(space["loop"])
