"""Pages of mapped files: found, given back, and left alone where somebody has written."""

from pathlib import Path

import torch

from torch_cpullm.machine import MappedFiles

BYTES = 1 << 22


def mapped_tensor(folder: Path) -> torch.Tensor:
    file = folder / "weights"
    file.write_bytes(bytes(range(256)) * (BYTES // 256))
    return torch.from_file(str(file), shared=False, size=BYTES, dtype=torch.uint8)


def resident(tensor: torch.Tensor) -> int:
    """Bytes of the tensor's mapping in memory."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, stop = (int(part, 16) for part in first.split("-"))
            inside = start <= tensor.data_ptr() < stop
        elif inside and first == "Rss:":
            return 1024 * int(line.split()[1])
    raise AssertionError("no mapping holds the tensor")


def test_pages_come_back_as_they_were(tmp_path):
    tensor = mapped_tensor(tmp_path)
    total = int(tensor.sum())
    files = MappedFiles.under([tensor])
    assert files.holds(tensor)
    assert resident(tensor) == BYTES
    files.release()
    assert resident(tensor) == 0
    assert int(tensor.sum()) == total


def test_what_was_written_is_not_given_back(tmp_path):
    tensor = mapped_tensor(tmp_path)
    tensor[5] = 77
    files = MappedFiles.under([tensor])
    assert not files.holds(tensor)
    files.release()
    assert tensor[5] == 77


def test_memory_of_our_own_is_no_file():
    assert MappedFiles.under([torch.zeros(BYTES), torch.empty(3, device="meta")]).mappings == ()


def test_a_system_that_does_not_tell(tmp_path):
    tensor = mapped_tensor(tmp_path)
    assert MappedFiles.under([tensor], tmp_path / "smaps").mappings == ()
