"""Architectures with random weights: speed depends on the shape of a model, not on what it has learnt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from torch_cpullm.benchmark.causal_lm import CausalLM
from torch_cpullm.benchmark.steps import Advance, silent
from torch_cpullm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 20_240_704
STD = 0.02  # the initializer_range of every architecture below
# Normal numbers are drawn once and laid over the parameters like wallpaper, since drawing 1.2 G of them takes 10 s and
# copying 0.5 s. The length is a prime, so that no two rows or columns of a matrix start alike.
WALLPAPER = 4_194_301


def _llama_3_2_1b() -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )


def _llama_2_7b() -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )


def _llama_2_13b() -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=5120,
        intermediate_size=13_824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )


def _llama_2_70b() -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )


def _tinyllama_1_1b() -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )


def _qwen2_5_0_5b() -> PreTrainedConfig:
    return Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )


def _qwen3_0_6b() -> PreTrainedConfig:
    return Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )


def _phi_1_5() -> PreTrainedConfig:
    """Attention and MLP run in parallel."""
    return PhiConfig(
        vocab_size=51_200,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=2048,
        hidden_act="gelu_new",
        layer_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
    )


SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama-3.2-1b": _llama_3_2_1b,
    "qwen2.5-0.5b": _qwen2_5_0_5b,
    "qwen3-0.6b": _qwen3_0_6b,
    "tinyllama-1.1b": _tinyllama_1_1b,
    "phi-1.5": _phi_1_5,
    "llama-2-7b": _llama_2_7b,
    "llama-2-13b": _llama_2_13b,
    "llama-2-70b": _llama_2_70b,
}


def config_of(shape: str) -> PreTrainedConfig:
    """Find the configuration of a name in `SHAPES`, or of any causal LM's config.json (or the folder that holds one).

    Raises:
        ConfigError: neither; the message lists the names.
    """
    if shape.lower() in SHAPES:
        return SHAPES[shape.lower()]()
    path = Path(shape)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise ConfigError(f"shape: expected one of {', '.join(SHAPES)}, or the path of a config.json; got '{shape}'")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"shape: '{shape}' is no configuration that transformers reads: {reason}") from error
    return config


def meta_model(config: PreTrainedConfig) -> CausalLM:
    """Build the architecture without storage, bf16, on the meta device: to count parameters, and to fill afterwards.

    Raises:
        ConfigError: the configuration is not a causal LM's.
    """
    try:
        with torch.device("meta"):
            model: CausalLM = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    except ValueError as error:
        raise ConfigError(
            f"shape: expected a causal language model's configuration, got model_type '{config.model_type}'"
        ) from error
    return model


class Wallpaper:
    """Normal numbers for one parameter after the other, a function of the seed and of their order."""

    def __init__(self, seed: int = SEED) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._papers = {torch.float32: torch.empty(WALLPAPER).normal_(0.0, STD, generator=self._generator)}

    @staticmethod
    def covers(name: str, parameter: torch.Tensor) -> bool:
        """Whether a parameter is drawn: matrices and biases, not the gains of norms."""
        return parameter.dim() >= 2 or name.endswith("bias")

    def lay(self, parameter: torch.Tensor) -> None:
        """Fill one, in place."""
        if parameter.dtype not in self._papers:
            self._papers[parameter.dtype] = self._papers[torch.float32].to(parameter.dtype)
        offset = int(torch.randint(WALLPAPER, (1,), generator=self._generator))
        _lay(parameter.detach().view(-1), self._papers[parameter.dtype], offset)


def fill(model: CausalLM, seed: int = SEED, advance: Advance = silent) -> CausalLM:
    """Give a meta model storage and random weights: normal(0, 0.02), norm gains and buffers as transformers sets them.

    Args:
        model: on the meta device; changed in place and returned.
        seed: of the normal numbers.
        advance: told the bytes that are filled.
    """
    model.to_empty(device="cpu")
    model.tie_weights()  # to_empty gives each name storage of its own
    paper = Wallpaper(seed)
    named = dict(model.named_parameters())
    done, total = 0, sum(parameter.nbytes for parameter in named.values())
    for name, parameter in named.items():
        done += parameter.nbytes
        if paper.covers(name, parameter):
            paper.lay(parameter)
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # so that transformers sets only the rest
            advance(done, total)
    model.initialize_weights()  # type: ignore[no-untyped-call]  # norm gains, rope frequencies
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _lay(target: torch.Tensor, paper: torch.Tensor, offset: int) -> None:
    position = 0
    while position < len(target):
        piece = paper[offset : offset + len(target) - position]
        target[position : position + len(piece)] = piece
        position, offset = position + len(piece), 0
