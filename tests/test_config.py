"""Choices and environment variables."""

import pytest

from torch_cpullm import Config, config
from torch_cpullm.errors import ConfigError, TorchCpuLlmError


def test_defaults():
    assert Config() == Config(weights="int8", kv_cache="int8", attention="slim", lm_head=None, check=True)


@pytest.mark.parametrize("field", ["weights", "kv_cache", "attention", "lm_head", "check"])
def test_unknown_values_are_named(field):
    with pytest.raises(ConfigError, match=rf"{field}: expected one of .*, got 'x'") as caught:
        Config(**{field: "x"})
    assert isinstance(caught.value, (ValueError, TorchCpuLlmError))


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "many"])
def test_kv_limit_must_be_a_number(text, monkeypatch):
    monkeypatch.setenv("TORCH_CPULLM_KV_LIMIT", text)
    with pytest.raises(ConfigError, match="TORCH_CPULLM_KV_LIMIT"):
        config.kv_limit_bytes()


def test_unset_variables(monkeypatch):
    monkeypatch.delenv("TORCH_CPULLM_KV_LIMIT", raising=False)
    monkeypatch.delenv("TORCH_CPULLM_ISA", raising=False)
    assert config.kv_limit_bytes() is None
    assert config.forced_isa() is None
