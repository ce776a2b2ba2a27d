"""Build torch_cpullm/_C.so (every csrc/**/*.cpp) and _ccl.so (csrc/ccl, where oneCCL is), by ninja: only what changed.

    python setup.py preflight             one line that names what is missing, or silence; needs neither torch nor pip
    python setup.py build_ext --inplace   build into the working tree (what `make` calls; 0.2 s when nothing changed)

_C.so only registers operators (TORCH_LIBRARY): torch.ops.load_library opens it, so no Python header is needed. _ccl.so
is all that is compiled against oneCCL; without its headers everything else is built and works.

Why not torch.utils.cpp_extension.BuildExtension: it imports torch and links every time (2.2 s with nothing to do),
passes torch's headers with -I, where -Wshadow -Werror stops in them, prints 2 kB a file, and adds the flags that Python
was built with, which in some distributions hold -march. The build.ninja below does none of that.

Environment variables, read nowhere else: CXX (the compiler), MAX_JOBS (how many at once; a file that includes torch
takes 1 GB), TORCH_CPULLM_SANITIZE (say "address,undefined").
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple, NoReturn

SUPPORTED_PYTHON = ((3, 10), (3, 13))
TESTED_GCC = ("12",)  # -Werror for these only: another one may warn about more, which must not stop a user's build

COMPILE_FLAGS = (
    "-std=c++20",  # the headers of torch 2.13 need it
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-ffp-contract=off",  # a * b + c rounds as written, in every tail, at every ISA level; kernels say fma themselves
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Icsrc",
)  # and no -march: one binary for all machines; kernels open target regions of their own (csrc/isa)
LINK_FLAGS = ("-shared", "-fopenmp", "-Wl,--as-needed")
# libccl.so.1 is the name of two libraries, and <prefix>/lib has the one for SYCL. DT_RPATH, unlike DT_RUNPATH, comes
# before LD_LIBRARY_PATH, which may lead there; the path is from site-packages/torch_cpullm to the one for CPUs.
CCL_LINK_FLAGS = ("-l:libccl.so.1", "-Wl,--disable-new-dtags,-rpath,$ORIGIN/../../../ccl/cpu/lib")
CCL_FOLDER = Path("csrc/ccl")
CCL_PACKAGE = "oneccl-devel"
SANITIZE_FLAGS = (
    "-fno-sanitize=vptr",  # it wants type information that libtorch hides
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-g",
    "-O1",
)

# The smallest program that fails where the sources would: compiler version, language level, C++ library, OpenMP header.
PROBE = """
#if !defined(__clang__) && __GNUC__ < 11
#error too-old
#endif
#include <bit>
#include <omp.h>
"""

NINJA = """\
builddir = {folder}

rule compile
  command = {compile} -MMD -MF $out.d -c $in -o $out
  description = $in
  depfile = $out.d
  deps = gcc

rule link
  command = {compiler} $in -o $out {link}
  description = $out

{objects}
build {target}: link {inputs}
"""


def fail(problem: str, remedy: str) -> NoReturn:
    """Stop with one line."""
    sys.exit(f"torch_cpullm: {problem}; {remedy}")


def check_python() -> None:
    """Stop when this Python is outside the supported range, or cannot make a virtual environment."""
    if not SUPPORTED_PYTHON[0] <= sys.version_info[:2] <= SUPPORTED_PYTHON[1]:
        running, oldest, newest = (".".join(map(str, v)) for v in (sys.version_info[:2], *SUPPORTED_PYTHON))
        remedy = "name another one (make PYTHON=python3.11), from the packages python3.11 and python3.11-venv"
        fail(f"Python {running} found, {oldest} to {newest} needed", remedy)
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        fail("this Python cannot create a virtual environment", "install the package python3-venv (apt)")


def find_compiler() -> "list[str]":
    """Return the compiler's command, CXX or else the first of g++ and clang++, after a trial on PROBE."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = [command for command in ([named] if named else [["g++"], ["clang++"]]) if shutil.which(command[0])]
    if not found:
        wanted = f"CXX={shlex.join(named)} is not on PATH" if named else "no C++ compiler (g++ 11 or newer, or clang)"
        fail(wanted, "install the package g++ (apt) or gcc-c++ (dnf)")
    compiler = found[0]
    trial = [*compiler, "-std=c++20", "-fopenmp", "-fsyntax-only", "-x", "c++", "-"]
    errors = subprocess.run(trial, input=PROBE, stderr=subprocess.PIPE, text=True, check=False).stderr
    if "too-old" in errors or "std=c++20" in errors:
        fail(f"{compiler[0]} is too old (g++ 11 or newer, or clang)", "install g++-12 (apt) and set CXX=g++-12")
    if "omp.h" in errors:
        fail(f"{compiler[0]} has no OpenMP header omp.h", "install the package libomp-dev (apt) or libomp-devel (dnf)")
    if "error" in errors:
        reason = next(line for line in errors.splitlines() if "error" in line)
        fail(f"{compiler[0]} compiles no C++20 ({reason})", "install the package g++ (apt) or gcc-c++ (dnf)")
    return compiler


def find_torch() -> Path:
    """Return the folder of the installed torch, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        fail("torch is not installed in this Python", "run make, or pip install torch==2.13.0")
    return Path(spec.submodule_search_locations[0])


def find_ninja() -> str:
    """Return the ninja of this environment (pip install ninja), or the system's."""
    ninja = shutil.which("ninja", path=sysconfig.get_path("scripts")) or shutil.which("ninja")
    if ninja is None:
        fail("ninja is not installed", "run make, or pip install ninja, or install the package ninja-build (apt, dnf)")
    return ninja


class Library(NamedTuple):
    """A shared library: what it is made from, and the flags of its own to compile and to link with."""

    target: Path
    sources: "list[Path]"
    to_compile: "list[str]"
    to_link: "list[str]"


def operators(target: Path) -> Library:
    """Return _C.so: all sources but those of _ccl.so, with torch."""
    from importlib.metadata import version  # here: Python 3.7 has none, and must get as far as check_python

    sources = sorted(path for path in Path("csrc").rglob("*.cpp") if CCL_FOLDER not in path.parents)
    if not sources:
        fail("no csrc/**/*.cpp here", f"run setup.py in the root of the repository, not in {Path.cwd()}")
    home = find_torch()
    to_compile = ["-isystem", str(home / "include"), "-isystem", str(home / "include/torch/csrc/api/include")]
    # On every command line, so that ninja compiles again when another torch is installed.
    to_compile += [f'-DTORCH_CPULLM_BUILT_FOR="{version("torch")}"']
    return Library(target, sources, to_compile, [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10"])


def oneccl(target: Path) -> "Library | None":
    """Return _ccl.so, or None where oneCCL's header or its library for CPUs is not installed."""
    from importlib.metadata import PackageNotFoundError, files

    try:
        installed = [Path(str(entry.locate())) for entry in files(CCL_PACKAGE) or ()]
    except PackageNotFoundError:
        return None
    header = next((path for path in installed if path.parts[-2:] == ("oneapi", "ccl.hpp")), None)
    library = next((path for path in installed if path.parts[-4:] == ("ccl", "cpu", "lib", "libccl.so.1")), None)
    if header is None or library is None:
        return None
    to_compile = ["-isystem", str(header.resolve().parent.parent)]
    to_link = [f"-L{library.resolve().parent}", *CCL_LINK_FLAGS]
    return Library(target, sorted(CCL_FOLDER.rglob("*.cpp")), to_compile, to_link)


LIBRARIES = {"torch_cpullm._C": operators, "torch_cpullm._ccl": oneccl}


def flags(compiler: "list[str]") -> "tuple[list[str], list[str]]":
    """Return the flags that all libraries compile with, and those they link with."""
    release = subprocess.run([*compiler, "-dumpversion"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    sanitizers = os.environ.get("TORCH_CPULLM_SANITIZE")
    sanitize = [f"-fsanitize={sanitizers}", *SANITIZE_FLAGS] if sanitizers else []
    undefined = [] if sanitizers else ["-Wl,-z,defs"]  # a missing definition fails here and not when the library loads
    to_compile = [*COMPILE_FLAGS, *(["-Werror"] if release in TESTED_GCC else []), *sanitize]
    return to_compile, [*LINK_FLAGS, *sanitize, *undefined]


def build_file(library: Library, folder: Path) -> str:
    """Return build.ninja of a library, with the objects in `folder`."""

    def command(words: "list[str]") -> str:
        return shlex.join(words).replace("$", "$$")

    def name(path: Path) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    compiler = find_compiler()
    to_compile, to_link = flags(compiler)
    objects = {source: folder / source.with_suffix(".o") for source in library.sources}
    return NINJA.format(
        folder=name(folder),
        compiler=command(compiler),
        compile=command([*compiler, *to_compile, *library.to_compile]),
        link=command([*to_link, *library.to_link]),
        objects="\n".join(f"build {name(object_)}: compile {name(source)}" for source, object_ in objects.items()),
        target=name(library.target),
        inputs=" ".join(map(name, objects.values())),
    )


def main() -> None:
    """Hand over to setuptools, with ninja as the way to build the extension."""
    from setuptools import Extension, setup
    from setuptools.command.build_ext import build_ext

    class NinjaBuild(build_ext):
        def get_ext_filename(self, fullname: str) -> str:
            return fullname.replace(".", "/") + ".so"  # no Python tag: it depends on torch's version only

        def build_extension(self, ext: Extension) -> None:
            library = LIBRARIES[ext.name](Path(os.path.relpath(self.get_ext_fullpath(ext.name))))
            if library is None:
                remedy = f"pip install {CCL_PACKAGE}==2021.13.1 and build again"
                sys.stdout.write(f"torch_cpullm: built without oneCCL; to have it, {remedy}\n")
                return
            folder, ninja, jobs = Path(self.build_temp) / ext.name, find_ninja(), os.environ.get("MAX_JOBS")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "build.ninja").write_text(build_file(library, folder))
            sys.stdout.flush()
            command = [ninja, "-f", str(folder / "build.ninja"), *(["-j", jobs] if jobs else [])]
            if subprocess.run(command, check=False).returncode:
                fail("the extension was not built", "the compiler's message is above")

    extensions = [Extension(name, sources=[], optional=name == "torch_cpullm._ccl") for name in LIBRARIES]
    setup(ext_modules=extensions, cmdclass={"build_ext": NinjaBuild})


if __name__ == "__main__":
    check_python()
    if sys.argv[1:] == ["preflight"]:
        find_compiler()
    else:
        main()
