"""Writes a checkpoint of transformers as the BF16 GGUF file that llama.cpp's own converter would make of it.

Only what speed and logits depend on: a tokenizer is not among it, so one of the vocabulary's size is declared empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from torch_cpullm.benchmark.engines.engine import MissingEngineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PreTrainedConfig

# The rope types that the file can express, of each model type. Only the graph of llama divides the frequencies.
ROPE_TYPES = {"llama": {"default", "llama3"}, "qwen2": {"default"}, "qwen3": {"default"}}
ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class _Source:
    """Where a tensor of the GGUF file comes from.

    Attributes:
        shard: a safetensors file.
        name: in there.
        target: its name in the GGUF file.
        shape: in both.
    """

    shard: Path
    name: str
    target: str
    shape: tuple[int, ...]


def write_gguf(checkpoint: Path, path: Path) -> None:
    """Write the weights one by one, so that memory holds a single tensor whatever the size of the model.

    Args:
        checkpoint: a folder of transformers' save_pretrained.
        path: of the file to write.

    Raises:
        MissingEngineError: the gguf package is not installed, or llama.cpp would compute something else than the
            checkpoint's model.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingEngineError("writing GGUF files needs: pip install gguf") from error
    config = AutoConfig.from_pretrained(checkpoint)
    _refuse_unknown(config)
    sources = list(_sources(gguf, checkpoint, config))
    divisors = _frequency_divisors(config)
    writer = gguf.GGUFWriter(path, config.model_type)
    try:
        _describe(gguf, writer, config)
        if divisors is not None:
            writer.add_tensor_info(ROPE_FREQS, divisors.shape, divisors.dtype, divisors.nbytes)
        for source in sources:
            dtype, stored_as = _storage(gguf, source.shape)
            nbytes = int(np.prod(source.shape)) * dtype.itemsize
            writer.add_tensor_info(source.target, source.shape, dtype, nbytes, raw_dtype=stored_as)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if divisors is not None:
            writer.write_tensor_data(divisors)
        for source in sources:
            writer.write_tensor_data(_load(source, config))
    finally:
        writer.close()


def _refuse_unknown(config: PreTrainedConfig) -> None:
    if config.model_type not in ROPE_TYPES:
        raise MissingEngineError(
            f"llama.cpp: the model type '{config.model_type}' is none of {', '.join(ROPE_TYPES)}, which we convert"
        )
    rope_type = config.rope_parameters["rope_type"]
    if rope_type not in ROPE_TYPES[config.model_type]:
        raise MissingEngineError(f"llama.cpp: rope type '{rope_type}' of a {config.model_type} is not one we convert")
    if config.hidden_act != "silu":
        raise MissingEngineError(f"llama.cpp: a {config.model_type} has silu there, not '{config.hidden_act}'")
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        raise MissingEngineError("llama.cpp: layers with a sliding window are not among what we convert")


def _sources(gguf: Any, checkpoint: Path, config: PreTrainedConfig) -> Iterator[_Source]:
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)
    for shard in sorted(checkpoint.glob("model*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no dict and cannot be iterated over
                if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings):
                    continue  # llama.cpp computes the first; without the second it takes the embedding
                target = table.get_name(name, try_suffixes=(".weight", ".bias"))
                if target is None:
                    raise MissingEngineError(f"llama.cpp: a {config.model_type} has no tensor '{name}'")
                yield _Source(shard, name, target, tuple(file.get_slice(name).get_shape()))


def _head_dim(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _describe(gguf: Any, writer: Any, config: PreTrainedConfig) -> None:
    head_dim = _head_dim(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _storage(gguf: Any, shape: tuple[int, ...]) -> tuple[np.dtype[Any], Any]:
    # llama.cpp adds biases and multiplies by norm gains in float32 only; numpy has no bfloat16, int16 carries its bits.
    if len(shape) == 1:
        return np.dtype(np.float32), gguf.GGMLQuantizationType.F32
    return np.dtype(np.int16), gguf.GGMLQuantizationType.BF16


def _load(source: _Source, config: PreTrainedConfig) -> NDArray[Any]:
    with safe_open(source.shard, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(source.name)
    if config.model_type == "llama" and ".q_proj." in source.name:
        tensor = _interleave(tensor, config.num_attention_heads)
    if config.model_type == "llama" and ".k_proj." in source.name:
        tensor = _interleave(tensor, config.num_key_value_heads)
    if tensor.dim() == 1:
        return tensor.float().numpy()
    return tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy()


def _interleave(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Order the rows of each head 0, C/2, 1, C/2 + 1, ...

    The rotary embedding of transformers turns channel c together with c + C/2, that of llama.cpp's llama 2c with 2c+1.
    Queries and keys change order alike, so their products stay as they are.
    """
    interleaved: torch.Tensor = rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    return interleaved


def _frequency_divisors(config: PreTrainedConfig) -> NDArray[Any] | None:
    """Find what llama.cpp divides each rotary frequency by (it knows the plain theta^(-2i/C)), if by anything."""
    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        return None
    frequencies, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    exponents = torch.arange(0, _head_dim(config), 2, dtype=torch.float32) / _head_dim(config)
    divisors: torch.Tensor = rope["rope_theta"] ** -exponents / frequencies
    return divisors.numpy()
