"""Counting a model without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from torch_cpullm.benchmark.shapes import meta_model
from torch_cpullm.benchmark.standing import Sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def sizes_of(config: PreTrainedConfig) -> Sizes:
    """Count by the modules that transformers makes of it."""
    model: Any = meta_model(config)
    text = config.get_text_config(decoder=True)
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    channels = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Sizes(
        products=sum(module.weight.numel() for module in linears),
        attention=4 * text.num_hidden_layers * heads * channels,
        kv_elements=2 * text.num_hidden_layers * kv_heads * channels,
        idle_table=0 if head is not None and head.weight is table.weight else table.weight.numel(),
        head=0 if head is None else head.weight.numel(),
    )
