"""What all tests share; and, at the end of a run, which kernels ran at which ISA level."""

import pytest
import torch

from torch_cpullm.ops import introspect
from torch_cpullm.testing.kernels_seen import KERNELS_SEEN


def pytest_addoption(parser):
    parser.addoption("--fuzz-cases", type=int, default=300, help="random problems of tests/ops/test_fuzz.py")


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts from the same seed and thread count, and leaves the thread count as it was."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section(f"kernels (ISA level {introspect.isa_level()})")
    for kernel in introspect.kernel_report():
        forced = [level for level, names in KERNELS_SEEN.items() if kernel.name in names]
        elsewhere = f"in a process forced to {' and to '.join(forced)}" if forced else ""
        if kernel.calls:
            line = f"ran {kernel.calls:>6} times  {kernel.name}"
        elif forced:
            line = f"ran               {kernel.name}: {elsewhere}"
        else:
            why = f"needs {', '.join(kernel.missing)}" if kernel.missing else "a better one exists at this level"
            line = f"did not run       {kernel.name}: {why}"
        terminalreporter.write_line(line)


@pytest.fixture
def script(tmp_path):
    """Writes a user's script; gives its path."""

    def written(text):
        file = tmp_path / "script.py"
        file.write_text(text)
        return file

    return written
