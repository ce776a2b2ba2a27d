"""A folder with an optimised model: what is written, and what is checked before it is used again.

    torch_cpullm.json            the record: version, files with sizes and SHA-256, and what describes the model
    packed.safetensors           packed weights, each at a multiple of 64 bytes, so that they can be used where they lie
    other.safetensors            what is not packed: gains of norms, biases, multipliers
    config.json                  transformers' configuration
    ...                          generation defaults and tokenizer, also transformers', which may be edited

The record goes first and is written last, under another name before: a folder with a record is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from torch_cpullm.errors import StoredModelError

if TYPE_CHECKING:
    import torch

_MULTIPLIER = ":multiplier"  # no module's name has a colon
RECORD, CONFIG = "torch_cpullm.json", "config.json"
PACKED, OTHER = "packed.safetensors", "other.safetensors"
_FILES = (CONFIG, PACKED, OTHER)
VERSION = 3
ALIGNMENT = 64
_HASHED_AT_A_TIME = 1 << 22


def begin(folder: Path) -> None:
    """Make the folder, or take the record of the model that lies there: from here on it holds none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)


@dataclass(frozen=True)
class Tensors:
    """By name: packed weights (uint8, contiguous) and multipliers by their module's, other tensors by their own."""

    packed: dict[str, torch.Tensor]
    multipliers: dict[str, torch.Tensor]
    other: dict[str, torch.Tensor]


def write(folder: Path, tensors: Tensors, record: dict[str, Any]) -> None:
    """Write both tensor files and the record; files of an older model in the folder are replaced.

    Args:
        folder: after `begin`, with the configuration in it.
        tensors: those that share memory are written each for itself.
        record: what JSON can hold; `version`, and `files` with bytes and SHA-256 of each, are added.

    Raises:
        OSError: the disk is full, or the folder cannot be written. There is no record then.
    """
    packed = tensors.packed
    other = tensors.other | {name + _MULTIPLIER: factors for name, factors in tensors.multipliers.items()}
    with _replacing(folder / PACKED) as file:
        save_file(packed, file, metadata={"padding": " " * _padding(packed)})
    with _replacing(folder / OTHER) as file:
        save_file({name: tensor.contiguous().clone() for name, tensor in other.items()}, file)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in _FILES}
    text = json.dumps({"version": VERSION, "files": files, **record}, indent=1)
    with _replacing(folder / RECORD) as file:
        file.write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path, verify: bool) -> dict[str, Any]:
    """The record, after the files it speaks of were found to have the right sizes, and with `verify` the right bytes.

    Raises:
        StoredModelError: there is no record, it is of another version, or a file is missing or was changed.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoredModelError(
            f"folder: expected one that torch_cpullm.save() has written whole, got {folder} without {RECORD}"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoredModelError(f"{RECORD}: expected JSON, got something else ({error})") from error
    if not isinstance(record, dict) or record.get("version") != VERSION:
        found = record.get("version") if isinstance(record, dict) else record
        raise StoredModelError(
            f"{RECORD}: expected version {VERSION}, got {found!r}; save the model with this torch_cpullm"
        )
    files = record.get("files")
    for name in _FILES:
        entry = files.get(name) if isinstance(files, dict) else None
        if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
            raise StoredModelError(f"{RECORD}: expected bytes and sha256 of {name}, got {entry!r}")
        _check_file(folder / name, entry, verify or name == CONFIG)
    return record


def read_tensors(folder: Path) -> Tensors:
    """All tensors of a folder, mapped and not read: processes that load the same files share their memory.

    Raises:
        StoredModelError: the files are none of safetensors.
    """
    rest = _mapped(folder / OTHER)
    multipliers = {name: rest.pop(name) for name in list(rest) if name.endswith(_MULTIPLIER)}
    named = {name.removesuffix(_MULTIPLIER): factors for name, factors in multipliers.items()}
    return Tensors(_mapped(folder / PACKED), named, rest)


def _mapped(file: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(file, framework="pt") as source:
            return {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118  (it is no dict)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise StoredModelError(f"{file.name}: expected a file of safetensors, got something else ({error})") from error


def _padding(packed: dict[str, torch.Tensor]) -> int:
    """Characters of metadata after which the file's data starts at a multiple of 64 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"padding": ""}}
    start = 0
    for name in sorted(packed):
        size = packed[name].numel()
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [start, start + size]}
        start += size
    header = 8 + len(json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode())
    return -header % ALIGNMENT


def _check_file(file: Path, entry: dict[str, Any], verify: bool) -> None:
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        raise StoredModelError(f"folder: expected {file.name} beside {RECORD}, got none") from None
    if size != entry["bytes"]:
        raise StoredModelError(f"{file.name}: expected {entry['bytes']} bytes, got {size}; copy or save it again")
    if verify and _sha256(file) != entry["sha256"]:
        raise StoredModelError(f"{file.name}: its bytes are not those that were saved (SHA-256); copy the model again")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while block := source.read(_HASHED_AT_A_TIME):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A name to write to; the file gets its own when it is whole."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
