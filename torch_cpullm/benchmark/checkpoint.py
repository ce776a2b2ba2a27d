"""The checkpoint that all contenders are made from: random weights in an architecture, written once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from torch_cpullm.benchmark.shapes import config_of, fill, meta_model
from torch_cpullm.benchmark.steps import Advance, silent
from torch_cpullm.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def random_checkpoint(shape: str, folder: Path, advance: Advance = silent) -> Path:
    """Write a shape with random weights in bf16 below `folder`, unless it is there.

    Args:
        shape: a name of SHAPES, or a config.json.
        folder: made where it does not exist.
        advance: told the bytes that are filled.

    Raises:
        ConfigError: no such shape, or no room on the disk.
    """
    target = folder / (Path(shape).parent.name if shape.endswith("config.json") else Path(shape).name)
    if target.exists():
        return target
    model = meta_model(config_of(shape))
    needed = sum(parameter.nbytes for parameter in model.parameters())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 4 * needed:  # the checkpoint, and what the contenders make of it
        raise ConfigError(f"folder: expected {4 * needed >> 30} GiB free in {folder}, got {free >> 30}; choose another")
    part = target.with_name(f".{target.name}")
    shutil.rmtree(part, ignore_errors=True)
    fill(model, advance=advance).save_pretrained(part)
    part.rename(target)
    return target


def read_config(checkpoint: Path) -> PreTrainedConfig:
    """Its configuration. Raises ConfigError."""
    return config_of(str(checkpoint))
