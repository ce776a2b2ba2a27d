"""How long the demo's prompt may be."""

import pytest
from transformers import LlamaConfig

from torch_cpullm.benchmark import shapes
from torch_cpullm.demo.subject import prompt_length
from torch_cpullm.errors import ConfigError
from torch_cpullm.testing.models import TINY


@pytest.mark.parametrize("tokens", [1, 64, 1000])
def test_new_tokens_must_fit_the_context(tokens):
    with pytest.raises(ConfigError, match="tokens: expected 2 to 63"):
        prompt_length(shapes.meta_model(LlamaConfig(**TINY)), tokens)
