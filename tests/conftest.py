"""What all tests share; and, at the end of a run, which kernels ran at which ISA level."""

import pytest
import torch

from torch_cpullm.ops import introspect


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts from the same seed and thread count, and leaves the thread count as it was."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter):
    report = introspect.kernel_report()
    terminalreporter.section(f"kernels (ISA level {introspect.isa_level()}; other levels ran in tests/kernels)")
    for kernel in report:
        if kernel.calls:
            terminalreporter.write_line(f"ran {kernel.calls:>8} times  {kernel.name}")
    for kernel in report:
        if not kernel.calls:
            why = f"needs {', '.join(kernel.missing)}" if kernel.missing else "a better one was chosen in this process"
            terminalreporter.write_line(f"did not run         {kernel.name}: {why}")
