"""Small models of many families, with weights large enough that mistakes show, and the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

BUNDLED = Path(__file__).parent.parent / "demo" / "model"

TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
"""Sizes of an architecture where only its form matters."""

_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OLD: dict[str, Any] = {"vocab_size": 128, "hidden_size": 64, "num_attention_heads": 4, "pad_token_id": 0}
_FALCON: dict[str, Any] = {**_OLD, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
_GPTJ: dict[str, Any] = {
    "vocab_size": 128,
    "n_positions": 256,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MLA: dict[str, Any] = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16}
_FEW: dict[str, Any] = {"num_hidden_layers": 2, "max_position_embeddings": 256}

WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SIZES),
    "llama with biases": ("LlamaConfig", {**_SIZES, "attention_bias": True, "mlp_bias": True}),
    "llama, gelu": ("LlamaConfig", {**_SIZES, "hidden_act": "gelu"}),
    "llama, one head": ("LlamaConfig", {**_SIZES, "num_attention_heads": 1, "num_key_value_heads": 1}),
    "mistral": ("MistralConfig", {**_SIZES, "sliding_window": 8, "head_dim": 16}),
    "qwen2": ("Qwen2Config", _SIZES),
    "qwen2, sliding": (
        "Qwen2Config",
        {**_SIZES, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {**_SIZES, "head_dim": 32}),
    "phi3": ("Phi3Config", _SIZES),
    "gemma": ("GemmaConfig", {**_SIZES, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {**_SIZES, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3TextConfig", {**_SIZES, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "smollm3": ("SmolLM3Config", {**_SIZES, "num_hidden_layers": 4}),  # the fourth does not rotate
    "starcoder2": ("Starcoder2Config", {**_SIZES, "sliding_window": None}),
    "stablelm": ("StableLmConfig", _SIZES),
    "gpt neox, sequential": (
        "GPTNeoXConfig",
        {**_OLD, **_FEW, "intermediate_size": 96, "use_parallel_residual": False},
    ),
    "phi": ("PhiConfig", _SIZES),
    "gpt neox": ("GPTNeoXConfig", {**_OLD, **_FEW, "intermediate_size": 96}),
    "stablelm, parallel": ("StableLmConfig", {**_SIZES, "use_parallel_residual": True}),
    "cohere": ("CohereConfig", _SIZES),
    "cohere2": ("Cohere2Config", {**_SIZES, "sliding_window": 8, "num_hidden_layers": 4}),  # likewise
    "falcon": ("FalconConfig", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, one KV head": ("FalconConfig", {**_FALCON, "num_attention_heads": 5, "hidden_size": 80, "bias": True}),
    "falcon, one norm": (
        "FalconConfig",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 4, "num_ln_in_parallel_attn": 1},
    ),
    "falcon, sequential": ("FalconConfig", {**_FALCON, "parallel_attn": False, "multi_query": False}),
    "gpt-j": ("GPTJConfig", {**_GPTJ, "rotary_dim": 8}),
}
"""Families whose decoder layers become two fused ops, or one where attention and MLP run in parallel."""

ATTENTION_ONLY: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {**_SIZES, "num_local_experts": 4}),
    "qwen3 moe": (
        "Qwen3MoeConfig",
        {**_SIZES, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
}
"""Families whose attention half is fused, their experts left alone."""

LEFT_ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo2": ("Olmo2Config", _SIZES),
    "granite": ("GraniteConfig", {**_SIZES, "residual_multiplier": 0.5}),
    "cohere, head norms": ("CohereConfig", {**_SIZES, "use_qk_norm": True}),
    "glm": ("GlmConfig", {**_SIZES, "head_dim": 16}),
    "phi, head norms": ("PhiConfig", {**_SIZES, "qk_layernorm": True}),
    "opt": ("OPTConfig", {**_OLD, **_FEW, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "bloom": ("BloomConfig", {**_OLD, "n_layer": 2}),
    "falcon, alibi": ("FalconConfig", {**_FALCON, "alibi": True}),
    "llama, head size 24": ("LlamaConfig", {**_SIZES, "head_dim": 24}),
    "gpt-oss": (
        "GptOssConfig",
        {**_SIZES, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "deepseek v3": (
        "DeepseekV3Config",
        {
            **_SIZES,
            "num_key_value_heads": 4,
            **_MLA,
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "n_group": 1,
            "num_experts_per_tok": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 32,
            "n_shared_experts": 1,
            "num_hidden_layers": 2,
        },
    ),
}
"""Families whose layers do not match; their linear layers may be packed all the same."""


def tiny_model(config_name: str, fields: dict[str, Any]) -> Any:
    """A float32 causal LM of that configuration: matrices normal(0, 0.15), gains and biases off their defaults."""
    config = getattr(transformers, config_name)(**fields)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(0.0, 0.15)
    return model


def bundled_model(dtype: torch.dtype = torch.float32) -> Any:
    """The bundled model."""
    return transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=dtype)


def bundled_tokenizer() -> Any:
    """The bundled model's tokenizer; pads on the left."""
    return transformers.AutoTokenizer.from_pretrained(BUNDLED)
