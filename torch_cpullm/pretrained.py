"""from_pretrained(path, quantization_config=CpuLlmConfig(...)): quantise while loading, save packed, load packed.

    from_pretrained(checkpoint)      weights stay in the mapped files until one after the other is packed
    save_pretrained(folder)          NAME.packed in place of NAME.weight; the StoredModel in the files' metadata
    from_pretrained(folder)          the skeleton expects those names, then becomes the model that was saved; ranks cut
                                     their parts out of the mapped files, and what is whole is copied

transformers' own hooks for quantisers are all that is used; importing torch_cpullm registers ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from torch_cpullm.api import optimize_by, restore
from torch_cpullm.config import QUANT_METHOD, Activations, Attention, Config, Embeddings, KvCache, Sampler, Weights
from torch_cpullm.errors import ConfigError, StoredModelError
from torch_cpullm.machine import MappedFiles, apply_tuning
from torch_cpullm.modules.joined import own_shard
from torch_cpullm.modules.packed import PackedModule
from torch_cpullm.modules.stored import StoredModel, copy_weights, describe, fill, finish
from torch_cpullm.modules.texts import calibration_windows
from torch_cpullm.pack.store import Tensors
from torch_cpullm.plan.record import from_json, to_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from torch_cpullm.detect.structure import Dtype

_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_PACKED, _MULTIPLIER = "packed", "multiplier"
_READABLE = 4
"""Bytes. A packed weight holds floats (csrc/layout/packed.h), and whoever reads it wants them at such addresses."""
_SMALL = 1 << 20
"""Bytes. Norms and biases are copied, so that they alone do not keep a checkpoint's files mapped."""


@register_quantization_config(QUANT_METHOD)
class CpuLlmConfig(QuantizationConfigMixin):
    """The choices of `optimize`, for from_pretrained(path, quantization_config=CpuLlmConfig(weights="int4")).

    Weights are packed one after the other from the mapped checkpoint, so memory holds the packed model and the few
    weights at work. The model is optimised; its save_pretrained() writes it packed, and from_pretrained() of that
    folder, which needs no quantization_config, has it again bit for bit.
    """

    def __init__(  # noqa: PLR0913  (every choice of Config by its name, as optimize takes them)
        self,
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
        **others: Any,
    ) -> None:
        """See `optimize` for the arguments.

        Raises:
            ConfigError: a choice does not exist.
        """
        if others.pop("quant_method", QUANT_METHOD) != QUANT_METHOD:
            raise ConfigError(f"quant_method: expected {QUANT_METHOD!r}")
        calibrated = bool(others.pop("calibrated", calibration is not None))
        if others:
            raise ConfigError(f"CpuLlmConfig: expected choices of torch_cpullm.optimize, got {', '.join(others)}")
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]  # theirs lists the methods that transformers has
        self.choices = Config(
            weights=weights,
            group_size=group_size,
            symmetric=symmetric,
            activations=activations,
            kv_cache=kv_cache,
            attention=attention,
            lm_head=lm_head,
            embeddings=embeddings,
            sampler=sampler,
            calibrated=calibrated,
            check=check,
        )
        self.calibration, self.tokenizer = calibration, tokenizer

    def to_dict(self) -> dict[str, Any]:
        """What config.json says: the choices that are not the default, not the texts."""
        default = Config()
        changed = {f.name for f in fields(Config) if getattr(self.choices, f.name) != getattr(default, f.name)}
        chosen = {name: value for name, value in asdict(self.choices).items() if name in changed | {"weights"}}
        return {"quant_method": QUANT_METHOD, **chosen}


@register_quantizer(QUANT_METHOD)
class CpuLlmQuantizer(HfQuantizer):
    """What transformers calls before and after it has read a checkpoint."""

    quantization_config: CpuLlmConfig
    _dtype: torch.dtype
    _loaded: torch.dtype
    _stored: StoredModel
    _tied_keys: dict[str, str]

    def validate_environment(self, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse devices that packed weights cannot be on."""
        devices = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
        wrong = [device for device in devices if str(device) not in ("None", "cpu", "auto")]
        if wrong:
            raise ConfigError(f"device_map: packed weights live on the CPU, got {wrong[0]}; use 'cpu' or leave it out")

    def update_device_map(self, device_map: Any) -> Any:
        """The CPU, whatever 'auto' would choose."""
        return {"": "cpu"}

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Say whether it is a packed tensor, of a size that a skeleton does not know."""
        path, _, name = param_name.rpartition(".")
        return self.pre_quantized and path in self._stored.modules and name in (_PACKED, _MULTIPLIER)

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Tensors of a packed model are taken as they were saved."""
        return None

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        files = kwargs.get("checkpoint_files")
        self._dtype = self._loaded = kwargs.get("dtype") or model.dtype
        if self.pre_quantized:
            self._stored = _read_record(files[0] if files else None)
            self._tied_keys, model.all_tied_weights_keys = model.all_tied_weights_keys, {}
            _expect_packed(model, self._stored)
            return
        found = _dtype_of(files)
        if found in (None, self._dtype) or not self.quantization_config.choices.quantized:
            return
        if not model._get_dtype_plan(self._dtype):
            # A cast weight would lie in memory instead of the file; so none is cast until all are packed.
            self._loaded = found
            vars(model)["_get_dtype_plan"] = lambda _: {"": found}

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        if self.pre_quantized:
            model.all_tied_weights_keys = self._tied_keys
            apply_tuning()
            _take_packed(model, self._stored)
        else:
            vars(model).pop("_get_dtype_plan", None)
            self._quantize(model)

    def _quantize(self, model: PreTrainedModel) -> None:
        config = self.quantization_config
        if config.choices.calibrated and config.calibration is None:
            raise ConfigError("calibration: expected the texts, which config.json does not keep, got none; pass them")
        windows_NT = None
        if config.calibration is not None:
            windows_NT = calibration_windows(model, config.calibration, config.tokenizer)
        files = MappedFiles.under([*model.parameters(), *model.buffers()])
        if self._loaded != self._dtype:
            _cast(model, self._loaded)  # what the checkpoint lacks
        holders = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
        handles = [module.register_forward_hook(lambda *_: files.release()) for module in holders]
        try:
            wanted = cast("Dtype", str(self._dtype).removeprefix("torch."))
            optimize_by(model, config.choices, windows_NT, wanted, files.release, *own_shard())
        finally:
            for handle in handles:
                handle.remove()
            files.release()
        if self._loaded != self._dtype:
            _cast(model, self._dtype)
        _copy_small(model, files)

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Packed weights and what is not packed, and the record that `from_pretrained` builds the model by."""
        stored, tensors = describe(model)
        state = dict(tensors.other)
        state |= {f"{path}.{_PACKED}": packed for path, packed in tensors.packed.items()}
        state |= {f"{path}.{_MULTIPLIER}": factors for path, factors in tensors.multipliers.items()}
        return state, {QUANT_METHOD: json.dumps(to_json(stored))}

    def is_serializable(self) -> bool:
        """Say that save_pretrained works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes have no gradients."""
        return False

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        restore(model)
        if dtype is not None:
            _cast(model, dtype)
        return model


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters only: model.to(dtype) would round rope's frequencies as well, which are a buffer in float32."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if isinstance(module, PackedModule):
            module.read_as(dtype)


def _copy_small(model: nn.Module, files: MappedFiles) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.nbytes <= _SMALL and files.holds(tensor):
            tensor.data = tensor.data.clone()


def _read_record(file: str | None) -> StoredModel:
    try:
        with safe_open(file or "", framework="pt") as source:
            text = (source.metadata() or {}).get(QUANT_METHOD)
    except (SafetensorError, OSError) as error:
        raise StoredModelError(f"weights: expected a file of safetensors, got something else ({error})") from error
    if text is None:
        raise StoredModelError(
            "weights: expected files that save_pretrained() of a model of torch_cpullm has written, got others; "
            "their metadata has no record"
        )
    try:
        stored: StoredModel = from_json(StoredModel, json.loads(text), QUANT_METHOD)
    except ValueError as error:
        raise StoredModelError(f"metadata of the weights: {error}") from error
    return stored


def _dtype_of(files: Sequence[str] | None) -> torch.dtype | None:
    """The dtype that most matrices in files of safetensors have."""
    seen: list[torch.dtype] = []
    for name in files or ():
        if name.endswith(".safetensors"):
            with safe_open(name, framework="pt") as file:
                slices = [file.get_slice(key) for key in file.keys()]  # noqa: SIM118  (it is no dict)
            seen += [_FLOATS[s.get_dtype()] for s in slices if len(s.get_shape()) == 2 and s.get_dtype() in _FLOATS]
    return max(set(seen), key=seen.count) if seen else None


def _packed_module(model: nn.Module, path: str) -> nn.Linear | nn.Embedding:
    module: nn.Module | None = None
    with suppress(AttributeError):
        module = model.get_submodule(path)
    if not isinstance(module, (nn.Linear, nn.Embedding)):
        raise StoredModelError(f"{path}: expected a Linear or an Embedding of {type(model).__name__}, got {module}")
    return module


def _expect_packed(model: nn.Module, stored: StoredModel) -> None:
    """Let packed modules of a skeleton have no weight, but the tensors that the files hold for them, of any size."""
    for path, entry in stored.modules.items():
        module = _packed_module(model, path)
        module.register_parameter("weight", None)
        vars(module)["_is_hf_initialized"] = True  # a table that reads its head's bytes has nothing to be filled in
        if entry.owner is None:
            module.register_buffer(_PACKED, torch.empty(0, dtype=torch.uint8, device="meta"))
        if entry.multiplied:
            module.register_buffer(_MULTIPLIER, torch.empty(0, device="meta"))


def _take_packed(model: nn.Module, stored: StoredModel) -> None:
    """Make it the model that was saved, out of what the files have put into the skeleton.

    Its tensors are views of the mapped files. One whole weight after the other is copied, or a rank's part cut from it.
    """
    files = MappedFiles.under([*model.parameters(), *model.buffers()])
    fill(model, stored, _take_tensors(model, stored))
    finish(model, stored, files.release)
    copy_weights(model, files.release)
    _copy_small(model, files)


def _take_tensors(model: nn.Module, stored: StoredModel) -> Tensors:
    """Take what the files hold for packed modules, and leave plain ones whose weight has a shape and no memory."""
    tensors = Tensors({}, {}, {})
    for path in stored.modules:
        module = _packed_module(model, path)
        vars(module).pop("_is_hf_initialized", None)
        packed, multiplier_K = module._buffers.pop(_PACKED, None), module._buffers.pop(_MULTIPLIER, None)
        if packed is not None:
            # Behind an odd number of bf16 values a file has it where nobody can read it; that hardly ever happens.
            tensors.packed[path] = packed if packed.data_ptr() % _READABLE == 0 else packed.clone()
        if multiplier_K is not None:
            tensors.multipliers[path] = multiplier_K.clone()
        shape = (
            (module.num_embeddings, module.embedding_dim)
            if isinstance(module, nn.Embedding)
            else (module.out_features, module.in_features)
        )
        weight = torch.empty(shape, device="meta")
        module.register_parameter("weight", nn.Parameter(weight))
    return tensors
