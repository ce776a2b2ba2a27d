"""The checkpoint that all contenders are made from: random weights in an architecture, written once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import nn

from torch_cpullm.benchmark.shapes import Wallpaper, config_of, meta_model
from torch_cpullm.benchmark.steps import Advance, silent
from torch_cpullm.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from torch_cpullm.benchmark.causal_lm import CausalLM

_SHARD = 4 << 30


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
    if free < needed + _SHARD:
        raise ConfigError(
            f"folder: expected {(needed + _SHARD) / 1e9:.0f} GB free in {folder}, got {free / 1e9:.0f}; choose another"
        )
    part = target.with_name(f".{target.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    write_filled(model, part, advance)
    part.rename(target)
    return target


def write_filled(model: CausalLM, folder: Path, advance: Advance = silent) -> None:
    """Write what `fill` would make of a meta model as a checkpoint, in the memory of one shard.

    Args:
        model: on the meta device; its norms get storage.
        folder: exists.
        advance: told the bytes that are written.
    """
    paper, named = Wallpaper(), dict(model.named_parameters())
    for name, parameter in named.items():
        if paper.covers(name, parameter):
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers fills the others
        else:
            parent, _, last = name.rpartition(".")
            small = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype))
            model.get_submodule(parent).register_parameter(last, small)
    model.initialize_weights()  # type: ignore[no-untyped-call]
    shards = _shards(named)
    done, total = 0, sum(parameter.nbytes for parameter in named.values())
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        tensors = {}
        for name in names:
            tensors[name] = model.get_parameter(name).detach()
            if paper.covers(name, tensors[name]):
                tensors[name] = torch.empty(tensors[name].shape, dtype=tensors[name].dtype)
                paper.lay(tensors[name])
            done += tensors[name].nbytes
            advance(done, total)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    if len(shards) > 1:
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
        (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


def _shards(named: dict[str, nn.Parameter]) -> list[list[str]]:
    """Names in their order, in groups of at most `_SHARD` bytes or of one."""
    shards: list[list[str]] = []
    room = 0
    for name, parameter in named.items():
        if parameter.nbytes > room:
            shards.append([])
            room = _SHARD
        shards[-1].append(name)
        room -= parameter.nbytes
    return shards


def read_config(checkpoint: Path) -> PreTrainedConfig:
    """Its configuration. Raises ConfigError."""
    return config_of(str(checkpoint))
