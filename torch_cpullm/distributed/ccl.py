"""Opens groups over oneCCL: finds the library, says how it shall run, and lets the ranks meet through a store."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

from torch.distributed.distributed_c10d import Store

from torch_cpullm import config
from torch_cpullm.distributed.seats import Seats, agree, meet
from torch_cpullm.errors import ConfigError
from torch_cpullm.ops import comm_open

_LIBRARY = ("oneccl-devel", "ccl/cpu/lib/libccl.so.1")  # package, and the end of a path in it
_FABRIC = ("impi-rt", "libfabric/libfabric.so.1")
_PROVIDER = ("impi-rt", "libfabric/prov/libtcp-fi.so")
_REMEDY = 'pip install "torch_cpullm[ccl]"'


class Ccl(NamedTuple):
    """Files of oneCCL.

    Attributes:
        border: our _ccl.so.
        library: oneCCL for CPUs; there is one for SYCL of the same name.
        fabric: what it reaches the network by.
        providers: folder of that one's plug-ins.
    """

    border: Path
    library: Path
    fabric: Path
    providers: Path


def find_ccl() -> Ccl:
    """Where oneCCL is.

    Raises:
        ConfigError: it is not installed, or was not when torch_cpullm was built.
    """
    border = Path(__file__).parent.parent / "_ccl.so"
    if not border.exists():
        raise ConfigError(
            f"oneCCL: expected {border.name} beside the package, found none, as torch_cpullm was built without oneCCL; "
            "pip install oneccl-devel==2021.13.1 and build it again"
        )
    return Ccl(
        border,
        library=_installed(*_LIBRARY),
        fabric=_installed(*_FABRIC),
        providers=_installed(*_PROVIDER).parent,
    )


def open_ccl(store: Store, rank: int, size: int, timeout_s: float) -> int:
    """Return the number of a new group, when all ranks have it; or raise on all of them.

    Between hosts oneCCL goes by the interface that leads to MASTER_ADDR. It reads its variables once: where a process
    opens several groups, one of ranks on several hosts has to be the first. When a collective was left halfway, by a
    timeout or by Ctrl-C, no group over oneCCL works in this process any more.

    Args:
        store: shared by these ranks, and empty of other groups' keys: `PrefixStore(name, store)` makes it so.
        rank: this process, 0 to size - 1.
        size: processes, on any hosts.
        timeout_s: what any collective of the group waits for another rank.

    Raises:
        CollectiveError: oneCCL is missing on some rank; names it and says why. Or it cannot connect them.
        ConfigError: no network interface leads to the others.
    """
    seats = meet(store, rank, size)
    found, fault = None, ""
    try:
        found = find_ccl()
    except ConfigError as error:
        fault = str(error)
    agree(store, rank, size, "oneCCL", fault)
    assert found is not None
    with config.variables_for(_variables(found, seats)), _talking_to_stderr():
        # First, so that whatever else asks for a libccl.so.1 gets this one.
        ctypes.CDLL(str(found.library), ctypes.RTLD_GLOBAL)
        if rank == 0:
            store.set("address", comm_open.ccl_start(found.border).hex())
        return comm_open.open_ccl(
            found.border, bytes.fromhex(store.get("address").decode()), rank, seats.patience(timeout_s)
        )


@contextmanager
def _talking_to_stderr() -> Iterator[None]:
    """Where oneCCL's lines go while it starts: it writes to stdout, which belongs to the program.

    One of them it writes always, that CCL_LOG_LEVEL was changed to what keeps it from writing others: left out.
    """
    sys.stdout.flush()
    stdout, heard = os.dup(1), os.memfd_create("oneccl")
    os.dup2(heard, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        with os.fdopen(heard, "r", encoding="utf-8", errors="replace") as lines:
            lines.seek(0)
            sys.stderr.writelines(line for line in lines if "CCL_LOG_LEVEL" not in line)


def _variables(ccl: Ccl, seats: Seats) -> dict[str, str]:
    neighbours = seats.neighbours()
    return {
        "CCL_ATL_TRANSPORT": "ofi",
        "CCL_OFI_LIBRARY_PATH": str(ccl.fabric),
        "FI_PROVIDER_PATH": str(ccl.providers),
        "FI_PROVIDER": "tcp",
        # Its shared memory takes 5 instead of 9 us, but leaves 64 MB in /dev/shm when a rank is killed, and also when
        # it exits with a communicator. Ranks of one host have a faster way: "shm".
        "CCL_ATL_SHM": "0",
        "CCL_PROCESS_LAUNCHER": "none",
        "CCL_LOCAL_RANK": str(neighbours.index(seats.rank)),
        "CCL_LOCAL_SIZE": str(len(neighbours)),
        # Undocumented. Else threads of oneCCL do the work, for which no core is left: 6000 us instead of 10.
        "CCL_WORKER_OFFLOAD": "0",
        "CCL_KVS_IFACE": seats.interface,
        "FI_TCP_IFACE": seats.interface,
        "CCL_LOG_LEVEL": "error",
    }


def _installed(package: str, end: str) -> Path:
    try:
        entries = files(package) or ()
    except PackageNotFoundError:
        entries = ()
    for entry in entries:
        if str(entry).endswith(end) and (path := Path(str(entry.locate())).resolve()).is_file():
            return path
    raise ConfigError(f"oneCCL: expected the package {package} of oneCCL 2021.13.1, found none; {_REMEDY}")
