"""How far the vector loops are from what the processor can do: a static analyser's cycles beside the measured ones.

    python benchmarks/loops.py [--cpu icelake-server] [--level v3 v4]

Takes each loop out of the compiled module with objdump, gives it to llvm-mca, and times the same function on arrays
that fit in the first-level cache. Needs nm, objdump, llvm-mca and numba, on x86-64.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import fastnn
from fastnn._table import ACTIVATIONS
from fastnn.bench.cases import BY_NAME, Case, DataCache, fastnn_call
from fastnn.bench.runner import sampler

ELEMENTS = 4096
LANES = {"xmm": 4, "ymm": 8, "zmm": 16}


def loops_of(library: str, symbol: str, count: int) -> list[list[str]]:
    """The instructions of a function's longest loops without inner loops, in their order."""
    words = ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={symbol}", library]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    code = [(int(m[1], 16), m[2]) for m in re.finditer(r"^\s+([0-9a-f]+):\t(.+?)(?:\s+#.*)?$", text, re.M)]
    where = {address: i for i, (address, _) in enumerate(code)}
    loops = []
    for i, (address, instruction) in enumerate(code):
        jump = re.match(r"j\w+\s+([0-9a-f]+)", instruction)
        if jump and int(jump[1], 16) < address and int(jump[1], 16) in where:
            loops.append((where[int(jump[1], 16)], i))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    longest = sorted(sorted(inner, key=lambda loop: loop[0] - loop[1])[:count])
    # without the jumps, whose targets have no label here
    return [[instruction for _, instruction in code[first:last]] for first, last in longest]


def predicted(instructions: list[str], cpu: str, numbers: int) -> float:
    """Cycles an element, of which so many numbers are stored: those for which the analyser's busiest unit is taken,
    over the elements that an iteration stores; NaN where it stores none."""
    # constants in memory and addresses inside the module become plain ones: they are all cached
    plain = [re.sub(r"0x[0-9a-f]+\(%rip\)", "64(%rsp)", instruction) for instruction in instructions]
    words = ["llvm-mca", f"-mcpu={cpu}", "-iterations=200"]
    text = subprocess.run(words, input="\n".join(plain), capture_output=True, text=True, check=True).stdout
    pressure = re.search(r"^Resource pressure per iteration:\n.*\n(.*)$", text, re.M)
    cycles = max(float(taken) for taken in re.findall(r"[\d.]+", pressure[1])) if pressure else math.nan
    stores = [re.match(r"vmov[a-z0-9]+\s+%([xyz]mm)\d+,[^%]*\((?!%r[sb]p\))", line) for line in plain]
    elements = sum(LANES[store[1]] for store in stores if store) / numbers
    return cycles / elements if elements else math.nan


@functools.cache
def chain() -> Callable[[Any, Any], Any]:
    """A chain of multiply and exclusive or, 3 + 1 cycles a link on every recent x86-64 core, compiled."""
    import numba

    @numba.njit
    def links(x: Any, count: Any) -> Any:
        for _ in range(count):
            x = (x * np.uint64(6364136223846793005)) ^ np.uint64(1442695040888963407)
        return x

    links(np.uint64(1), 1)
    return links


def cycles_a_second() -> float:
    """Those of the next 25 microseconds."""
    links = chain()
    start = time.perf_counter()
    links(np.uint64(1), 20_000)
    return 4 * 20_000 / (time.perf_counter() - start)


def measured(row: Any, direction: str, level: str) -> float:
    """Cycles an element, in the first-level cache: the least time by the highest clock right after it, because
    processors lower it while they compute with wide vectors."""
    case = Case(BY_NAME[row.name], direction, (ELEMENTS,), "float32")
    sample = sampler(fastnn_call(fastnn, case, DataCache().arrays(case)))
    with fastnn.runtime.use_isa(level), fastnn.runtime.threads(1):
        pairs = [(sample(100), cycles_a_second()) for _ in range(200)]
    return min(seconds for seconds, _ in pairs) / 100 / ELEMENTS * max(speed for _, speed in pairs)


@functools.cache
def library_of(level: str) -> tuple[str, str]:
    """The file of a level's loops, and its symbols."""
    library = str(importlib.import_module(f"fastnn._level_{level}").__file__)
    return library, subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout


def cells(row: Any, direction: str, level: str, cpu: str) -> list[str]:
    """The table's cells of one function at one level, empty where it has no loop of its own."""
    library, symbols = library_of(level)
    symbol = re.search(rf"\S+_{level}_{row.name}_{direction}_f32\b", symbols)
    if symbol is None:
        return ["", "", ""]
    # that a loop stores of an element: of two steps the first stores what the second is handed
    numbers = [2, 1] if f"{direction} float" in row.two_steps else [1]
    loops = loops_of(library, symbol[0], len(numbers))
    static = sum(predicted(loop, cpu, count) for loop, count in zip(loops, numbers, strict=True))
    if math.isnan(static):
        return ["", "", ""]
    real = measured(row, direction, level)
    return [f"{static:.2f}", f"{real:.2f}", f"{static / real:.0%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cpu", default="icelake-server", help="processor model of llvm-mca")
    parser.add_argument("--level", nargs="+", default=["v3", "v4"], help="levels whose loops are analysed")
    args = parser.parse_args()
    missing = [tool for tool in ("nm", "objdump", "llvm-mca") if shutil.which(tool) is None]
    missing += ["numba"] if importlib.util.find_spec("numba") is None else []
    if missing:
        parser.exit(2, f"this needs {', '.join(missing)}: install binutils, llvm, and numba with pip\n")
    print(f"llvm-mca model {args.cpu}; cycles an element\n")
    titles = [f"{level}: {title}" for level in args.level for title in ("analyser", "measured", "analyser / measured")]
    print("| float32 |", " | ".join(titles), "|\n|" + "---|" * (1 + len(titles)))
    for row in ACTIVATIONS:
        for direction in ("forward", "backward"):
            found = [cell for level in args.level for cell in cells(row, direction, level, args.cpu)]
            print(f"| {row.name} {direction} |", " | ".join(found), "|")


if __name__ == "__main__":
    main()
