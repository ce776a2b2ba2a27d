"""The bundled model, stock and optimised, loaded once."""

import pytest
import torch

import torch_cpullm
from torch_cpullm.testing.models import BUNDLED, bundled_model, bundled_tokenizer


@pytest.fixture(scope="package")
def tokenizer():
    return bundled_tokenizer()


@pytest.fixture(scope="package")
def stock():
    return bundled_model()


@pytest.fixture(scope="package")
def ours():
    """Same values in float32, our kernels: what a mode gives must be what stock gives."""
    return torch_cpullm.optimize(bundled_model(), weights="keep", kv_cache="keep")


@pytest.fixture(scope="package")
def int8():
    return torch_cpullm.optimize(bundled_model(torch.bfloat16))


@pytest.fixture(scope="package")
def held_out_ids(tokenizer):
    text = (BUNDLED / "held_out.txt").read_text(encoding="utf-8")
    return tokenizer(text, return_tensors="pt").input_ids[0]
