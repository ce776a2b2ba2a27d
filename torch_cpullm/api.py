"""The five-line story: optimize, explain, restore; and save and load.

structure = detect(model)              what is there
plan      = make_plan(structure, ...)  what to do, and why
swap(model, plan)                      prove, pack, swap
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import nn

from torch_cpullm.config import QUANT_METHOD, Activations, Attention, Config, Embeddings, KvCache, Sampler, Weights
from torch_cpullm.detect import detect
from torch_cpullm.detect.structure import Dtype
from torch_cpullm.errors import StoredModelError, UnsupportedModelError
from torch_cpullm.machine import MappedFiles, apply_tuning
from torch_cpullm.modules.joined import own_shard
from torch_cpullm.modules.progress import packing_progress
from torch_cpullm.modules.stored import StoredModel, build, copy_weights, describe
from torch_cpullm.modules.swap import require_state, state_of, swap, unswap
from torch_cpullm.modules.texts import calibration_windows, tokenizer_of
from torch_cpullm.pack import store
from torch_cpullm.plan import Shard, make_plan
from torch_cpullm.plan.explain import Explanation
from torch_cpullm.plan.record import from_json, to_json
from torch_cpullm.plan.shard import ALONE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.quantizers.base import HfQuantizer

Model = TypeVar("Model", bound=nn.Module)


def optimize(  # noqa: PLR0913  (every choice of Config by its name)
    model: Model,
    weights: Weights = "int8",
    kv_cache: KvCache = "int8",
    attention: Attention = "slim",
    lm_head: Weights | None = None,
    check: bool = True,
    *,
    group_size: int | None = None,
    symmetric: bool = True,
    activations: Activations = "int8",
    embeddings: Embeddings | None = None,
    sampler: Sampler = "transformers",
    calibration: Sequence[str] | torch.Tensor | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Model:
    """Make a Hugging Face model fast on this CPU, in place; its generate() stays the call it was.

    Linear layers are packed and quantised, decoder layers that are proven equal to ours become two fused ops each, and
    generate() gets a paged KV cache. What does not match is left alone; `explain(model)` says what and why.

    After `torch_cpullm.distributed.init()` each rank is left its part: all of them make this call with the same model
    and the same choices.

    Args:
        model: any torch module on the CPU; most is gained on transformers' decoder models.
        weights: format of the linear layers, see Config.
        kv_cache: format of the KV cache, see Config.
        attention: "slim" or "keep", see Config.
        lm_head: format of the output head; None: "int8" beside quantised weights, else as `weights`.
        check: prove every replacement numerically first (a second for a model of 1 B parameters).
        group_size: inputs that share a scale: 0 (int8: all of an output), 32, 64 or 128; None: 0 for "int8", 32 for
            "int4".
        symmetric: False: groups of "int4" have a zero point as well.
        activations: "int8" or "bf16": what the inputs of quantised layers become, see Config.
        embeddings: "int8" or "keep"; None: "int8" beside quantised weights. A tied head's bytes serve both.
        sampler: "fused": tokens are drawn by one operator, in a tenth of the time at large vocabularies; seeded by
            torch.manual_seed, but other draws than transformers' from the same distribution.
        calibration: texts, or token ids [windows, tokens], to choose the codes by (GPTQ, minutes for a model of 1 B
            parameters). None: each weight is rounded to nearest. 32 windows of 512 tokens are enough.
        tokenizer: for the texts; None: the one of the folder the model was loaded from.

    Returns:
        The same model. A second call with the same choices does nothing; with others it restores and starts again.

    Raises:
        ConfigError: a choice does not exist, or calibration texts cannot be used.
        UnsupportedModelError: `model` is not a torch module, or a part of one that was shared among ranks.
        RankError: the ranks have different models or choices.
        CollectiveError: another rank has ended.
    """
    config = Config(
        weights=weights,
        group_size=group_size,
        symmetric=symmetric,
        activations=activations,
        kv_cache=kv_cache,
        attention=attention,
        lm_head=lm_head,
        embeddings=embeddings,
        sampler=sampler,
        calibrated=calibration is not None,
        check=check,
    )
    _require_module(model)
    windows_NT = None if calibration is None else calibration_windows(model, calibration, tokenizer)
    state = state_of(model)
    shard, group = own_shard()
    if state is not None:
        if (state.plan.config, state.plan.shard, state.group) == (config, shard, group):
            return model
        restore(model)
    optimize_by(model, config, windows_NT, shard=shard, group=group)
    return model


def optimize_by(
    model: nn.Module,
    config: Config,
    windows_NT: torch.Tensor | None = None,
    dtype: Dtype | None = None,
    after_each: Callable[[], None] | None = None,
    shard: Shard = ALONE,
    group: int = 0,
) -> None:
    """`optimize` for a model that is not optimised, its choices made.

    Args:
        model: changed in place.
        config: the choices.
        windows_NT: token ids for calibration.
        dtype: what the model is going to have; None: what it has.
        after_each: called before each linear layer is packed, and at the end.
        shard: the part of the model that is to be left of it, for one of the ranks that share it.
        group: of these ranks; 0: whoever calls brings the terms of all ranks together.
    """
    apply_tuning()
    structure = detect(model)
    plan = make_plan(structure if dtype is None else replace(structure, dtype=dtype), config, shard)
    with packing_progress(sum(linear.format is not None for linear in plan.linears), config.calibrated) as show:

        def progress(done: int, total: int, name: str) -> None:
            if after_each:
                after_each()
            if show:
                show(done, total, name)

        swap(model, plan, progress, windows_NT, group)


def explain(model: nn.Module) -> Explanation:
    """Say, module by module, what optimize() swapped, in which format and bytes, or why it was left alone.

    Raises:
        UnsupportedModelError: `model` was not optimised.
    """
    _require_module(model)
    return require_state(model).explanation


def restore(model: Model) -> Model:
    """Put the original classes back, in place. Does nothing to a model that is not optimised.

    Weights that were rounded (to int8, or from float32 to bf16) come back dequantised, with the rounding they have
    taken: a warning says so.

    Raises:
        UnsupportedModelError: the model is a rank's part of one.
    """
    _require_module(model)
    rounded = sorted(unswap(model))
    quantizer = getattr(model, "hf_quantizer", None)  # of a model that from_pretrained() has quantised
    if getattr(getattr(quantizer, "quantization_config", None), "quant_method", None) == QUANT_METHOD:
        cast("HfQuantizer", quantizer).remove_quantization_config(model)
    if rounded:
        warnings.warn(
            f"torch_cpullm: restored weights are the dequantised {'/'.join(rounded)} values, not the ones loaded; "
            "load the checkpoint again for those",
            stacklevel=2,
        )
    return model


def save(
    model: PreTrainedModel, folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Write an optimised model to a folder, as it is: packed weights, configuration, generation defaults, tokenizer.

    `load` has it again in about a second. model.save_pretrained() writes an ordinary checkpoint instead.

    Args:
        model: from optimize(); of a class of transformers.
        folder: made where it does not exist; a model that was saved there before is replaced, by none if this fails.
        tokenizer: None: the one of the place the model was loaded from, if there is one; else what lies there stays.

    Raises:
        UnsupportedModelError: the model is not optimised, is a rank's part of one, or its class is its own.
        OSError: the folder cannot be written.
    """
    _require_module(model)
    stored, tensors = describe(model)
    place = Path(folder)
    store.begin(place)
    model.config.save_pretrained(place)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(place)
    if tokenizer is None:
        try:
            tokenizer = tokenizer_of(model)
        except (OSError, ValueError):
            tokenizer = None
    if tokenizer is not None:
        tokenizer.save_pretrained(place)
    store.write(place, tensors, {"model": to_json(stored)})


def load(folder: str | os.PathLike[str], verify: bool = False, *, copy: bool = False) -> PreTrainedModel:
    """The model that `save` has written. Weights are used where they lie in the file's pages, which processes share.

    After `torch_cpullm.distributed.init()` each rank copies its part of them.

    Args:
        folder: of `save`. Its tokenizer: AutoTokenizer.from_pretrained(folder).
        verify: compare the SHA-256 of the weights as well (a second for a gigabyte); that of the configuration, and
            all sizes and headers, always are.
        copy: weights in memory of this process alone, on huge pages: loading reads the whole file (half a second for a
            gigabyte that the system has cached), and each token takes 4 % less time.

    Returns:
        An optimised model in evaluation mode, with the bits of the one that was saved.

    Raises:
        StoredModelError: the folder holds no whole model of this version, or not one that fits its configuration.
        UnsupportedModelError: ranks cannot share weights in its formats.
        RankError: the ranks have loaded different models.
    """
    from transformers import AutoConfig, GenerationConfig

    place = Path(folder)
    record = store.read_record(place, verify)
    try:
        stored: StoredModel = from_json(StoredModel, record.get("model"), "model")
    except ValueError as error:
        raise StoredModelError(f"{store.RECORD}: {error}") from error
    tensors = store.read_tensors(place)
    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise StoredModelError(f"config.json: expected transformers' configuration ({error})") from error
    apply_tuning()
    vars(config).pop("quantization_config", None)  # of a model that from_pretrained() had quantised
    model = build(stored, config, tensors)
    if copy:
        copy_weights(model, MappedFiles.under(tensors.packed.values()).release)
    if (place / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(place, local_files_only=True)
    model.name_or_path = str(place)
    return model


def _require_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
