"""What runs: the ISA level in use, the CPU's features, and which kernels ran how often."""

from __future__ import annotations

from dataclasses import dataclass

from torch_cpullm.ops.library import kernels


@dataclass(frozen=True)
class KernelReport:
    """One compiled kernel: how many ops chose it, and which CPU features it misses (empty: it can run here)."""

    name: str
    isa: str
    calls: int
    missing: tuple[str, ...]


def isa_level() -> str:
    """The level in use: "amx", "avx512", "avx2" or "scalar"."""
    return str(kernels.isa_level())


def cpu_features() -> tuple[str, ...]:
    """CPUID features of this machine that kernels may ask for, whatever TORCH_CPULLM_ISA leaves of them."""
    return tuple(word for word in kernels.cpu_features().split(",") if word)


def kernel_report() -> tuple[KernelReport, ...]:
    """Every kernel of the library, in the order of their tables (best first within a family)."""
    rows = (line.split("\t") for line in kernels.kernel_report().splitlines())
    return tuple(
        KernelReport(name, isa, int(calls), tuple(word for word in missing.split(",") if word))
        for name, isa, calls, missing in rows
    )


def scratch_bytes() -> int:
    """Bytes of working memory that this thread's last op laid out; kept between calls up to 128 MiB."""
    return int(kernels.scratch_bytes())
