"""Build the compiled modules: fastnn._core once, and fastnn._level_<name> once for every instruction-set level.

The vector loops (src/levels.pxi) are the same source for every level; only the compiler flags differ. A level whose
flags the compiler does not know is left out, so an unknown compiler or architecture still gets a working baseline.
"""

import os
import runpy
import shlex
import tempfile
from pathlib import Path

import numpy
from Cython import Tempita
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext, customize_compiler, new_compiler
from setuptools.errors import CompileError, LinkError

SRC = Path("src")
GENERATED = SRC / "generated"

# Contraction is off and fma explicit, so every level with a hardware fma computes the same bits. Trapping-math and
# errno are given up, nothing else of IEEE arithmetic is: -ffast-math would also flush subnormals in the whole process.
# Debug information, which Python's own flags ask for, would be four fifths of what is installed.
FLAGS = [
    "-O3",
    "-g0",
    "-fno-fast-math",
    "-fno-unsafe-math-optimizations",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-Wno-unused-function",
]
# The linker gets the user's CFLAGS too; for -Ofast or -ffast-math it would add code that flushes subnormals in the
# whole process as soon as the module is loaded.
LINK_FLAGS = ["-O3", "-fno-fast-math", "-fno-unsafe-math-optimizations", "-pthread"]
# gcc alone: order the instructions of the loops for their latencies, and unroll all of them twice: the processor's
# window is too short to overlap iterations of 40 instructions and more by itself (gelu gains 8 %, without AVX 20 %),
# and short loops are limited by memory, which does not like longer stretches of one array, then another. Such an order,
# made before registers are given out, leaves sums and coefficients to memory unless it minds them: with 16 vector
# registers layer norm and float64 gelu gain a quarter, gelu without fma loses a tenth. Three passes are kept from
# moving a select's arms about, which costs softsign and selu a sixth; one from making rep stos of the loops that clear
# sums, which takes tens of cycles a row.
LOOP_FLAGS = ["-fschedule-insns", "-fsched-pressure", "-funroll-loops"]
LOOP_FLAGS += ["-fno-tree-sink", "-fno-tree-pre", "-fno-thread-jumps", "-fno-tree-loop-distribute-patterns"]
UNROLLING = {"max-unroll-times": 1, "max-average-unrolled-insns": 150, "max-unrolled-insns": 200}
# The 32 registers of level v4 are enough for four times: on Zen 5, which spends as long waiting for results as
# computing them, float32 activations gain 5 to 10 %, float64 ones 10 to 25.
UNROLLED = {"v4": 4}
# Level v4 goes through its arrays vector by vector (src/walk.h) if the compiler takes this: the loop over the 8 or 16
# elements of one must not be taken apart before it has become that vector.
WALK_FLAG = "--param=max-completely-peel-times=6"
X86_V3 = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mmovbe"]
X86_V4 = [*X86_V3, *(f"-mavx512{part}" for part in ("f", "bw", "cd", "dq", "vl")), "-mprefer-vector-width=512"]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "freethreading_compatible": True,
    "warn.unreachable": False,  # what follows a return for one type of a fused function
}
LEVELS = {"__x86_64__": {"baseline": [], "v3": X86_V3, "v4": X86_V4}, "__aarch64__": {"neon": []}}


def render_templates() -> None:
    """Write what is the same for every row of the table, or for float and double, to src/generated."""
    rows = runpy.run_path("fastnn/_table.py")["ACTIVATIONS"]
    GENERATED.mkdir(exist_ok=True)
    for template in SRC.glob("*.tp"):
        text = Tempita.Template(template.read_text(), name=str(template)).substitute(rows=rows)
        write_if_changed(GENERATED / template.stem, text)


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def write_build_info(flags: list[str], levels: dict[str, list[str]], threads: bool) -> None:
    names = ",".join(levels)
    shown = shlex.join(flags).replace("\\", "\\\\").replace('"', '\\"')
    write_if_changed(
        GENERATED / "build_info.h",
        f'#define FN_BUILD_FLAGS "{shown}"\n'
        f'#define FN_BUILD_LEVELS "{names}"\n'
        f"#define FN_BUILD_THREADS {int(threads)}\n",
    )


class BuildExt(build_ext):
    """Ask the compiler what it can do, then build the modules side by side."""

    def finalize_options(self) -> None:
        self.probe = new_compiler()
        customize_compiler(self.probe)
        if not self.compiles():
            self.warn("an empty program does not compile and link, see CC, CFLAGS, LDFLAGS: building without options")
        flags = self.known(FLAGS)
        threads = self.compiles(
            "#include <pthread.h>\n#include <stdatomic.h>", "(void)pthread_self();", flags=["-pthread"]
        )
        if threads:
            flags += ["-pthread", "-DFN_THREADS"]
        levels = self.available_levels()
        if not threads:
            self.warn("a program with POSIX threads and C11 atomics does not compile or link: building without threads")
        write_build_info(flags, levels, threads)
        links = [flag for flag in flags if flag in LINK_FLAGS]
        loops = flags + self.known(LOOP_FLAGS)
        of_level = {"v4": [WALK_FLAG, "-DFN_WALK_VECTORS"]} if self.compiles(flags=[WALK_FLAG]) else {}
        modules = {"core": flags}
        for name, extra in levels.items():
            times = UNROLLED.get(name, 2)
            unrolling = self.known([f"--param={param}={times * value}" for param, value in UNROLLING.items()])
            modules[f"level_{name}"] = loops + unrolling + of_level.get(name, []) + extra
        self.distribution.ext_modules = [
            Extension(
                f"fastnn._{stem}",
                [str(SRC / f"{stem}.pyx")],
                include_dirs=[str(SRC), str(GENERATED), numpy.get_include()],
                define_macros=[
                    (f"NPY_{name}", "NPY_1_25_API_VERSION") for name in ("NO_DEPRECATED_API", "TARGET_VERSION")
                ],
                extra_compile_args=extra,
                extra_link_args=links,
                depends=[str(path) for pattern in ("*.h", "*.p*", "*.tp") for path in SRC.glob(pattern)],
            )
            for stem, extra in modules.items()
        ]
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self) -> None:
        for module in self.extensions:
            (translated,) = cythonize(
                module,
                build_dir="build/cython",
                include_path=[str(SRC), str(GENERATED)],
                compiler_directives=DIRECTIVES,
            )
            module.sources = translated.sources
        super().build_extensions()

    def available_levels(self) -> dict[str, list[str]]:
        for macro, levels in LEVELS.items():
            if self.compiles(f"#ifndef {macro}\n#error other architecture\n#endif"):
                available = {name: flags for name, flags in levels.items() if self.compiles(flags=flags)}
                if missing := [name for name in levels if name not in available]:
                    self.warn(f"the compiler does not take the flags of levels that are left out: {', '.join(missing)}")
                return available
        return {"baseline": []}

    def known(self, flags: list[str]) -> list[str]:
        """Those that the compiler takes."""
        return [flag for flag in flags if self.compiles(flags=[flag])]

    def compiles(self, head: str = "", body: str = "", flags: list[str] | None = None) -> bool:
        """Whether a small program compiles and links with these flags, and those of the environment."""
        link_flags = [*(flags or []), *shlex.split(os.environ.get("LDFLAGS", ""))]  # CFLAGS are the compiler's already
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(f"{head}\nint main(void) {{ {body} return 0; }}\n")
            extra = [*(flags or []), "-Werror"] if self.probe.compiler_type == "unix" else flags
            try:
                objects = self.probe.compile([str(source)], output_dir=folder, extra_postargs=extra)
                self.probe.link_executable(objects, str(Path(folder, "probe")), extra_postargs=link_flags)
            except (CompileError, LinkError):
                return False
        return True


render_templates()
# The list of modules depends on the compiler, so BuildExt makes it; this entry only says that there are some.
setup(ext_modules=[Extension("fastnn._core", [str(SRC / "core.pyx")])], cmdclass={"build_ext": BuildExt})
