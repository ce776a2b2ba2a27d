"""How long the demo's prompt may be."""

import pytest
from transformers import LlamaConfig

from torch_cpullm.benchmark import shapes
from torch_cpullm.demo.subject import prompt_length
from torch_cpullm.errors import ConfigError

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("tokens", [1, 64, 1000])
def test_new_tokens_must_fit_the_context(tokens):
    with pytest.raises(ConfigError, match="tokens: expected 2 to 63"):
        prompt_length(shapes.meta_model(LlamaConfig(**TINY)), tokens)
