"""The tuner keeps what it measured, and only that."""

import json

import pytest

import torch_cpullm
from torch_cpullm.errors import ConfigError
from torch_cpullm.machine import apply_tuning, tune, tuning
from torch_cpullm.ops import attention


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_CPULLM_SLIM_TOKENS", raising=False)
    before = attention.slim_tokens()
    yield tmp_path / "torch_cpullm" / "tuning.json"
    attention.set_slim_tokens(before)


def seconds_of(monkeypatch, slim_up_to):
    """As if whole rows were the faster ones up to a length."""
    monkeypatch.setattr(tuning, "_race", lambda length: (1.0, 2.0 if length <= slim_up_to else 0.9))


@pytest.mark.parametrize(("slim_up_to", "expected"), [(0, 0), (256, 256), (1500, 1024), (9000, 4096)])
def test_the_crossover_is_found_kept_and_used(cache, monkeypatch, slim_up_to, expected):
    seconds_of(monkeypatch, slim_up_to)
    assert tune() == expected
    assert attention.slim_tokens() == expected
    assert list(json.loads(cache.read_text()).values()) == [expected]
    attention.set_slim_tokens(7)
    apply_tuning()
    assert attention.slim_tokens() == expected


def test_it_measures():
    assert torch_cpullm.tune() in (0, 256, 512, 1024, 2048, 4096)


def test_other_machines_are_kept(cache, monkeypatch):
    seconds_of(monkeypatch, 256)
    cache.parent.mkdir()
    cache.write_text(json.dumps({"another CPU, avx2, 8 threads": 512}))
    tune()
    assert sorted(json.loads(cache.read_text()).values()) == [256, 512]


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"x": -1}', '{"x": "1"}'])
def test_a_file_that_is_not_ours_is_nothing(cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    attention.set_slim_tokens(7)
    apply_tuning()
    assert attention.slim_tokens() == 7


def test_the_environment_overrides(cache, monkeypatch):
    seconds_of(monkeypatch, 256)
    tune()
    monkeypatch.setenv("TORCH_CPULLM_SLIM_TOKENS", "3000")
    apply_tuning()
    assert attention.slim_tokens() == 3000
    monkeypatch.setenv("TORCH_CPULLM_SLIM_TOKENS", "many")
    with pytest.raises(ConfigError, match="TORCH_CPULLM_SLIM_TOKENS"):
        apply_tuning()


def test_a_folder_that_cannot_be_written(cache, monkeypatch):
    seconds_of(monkeypatch, 256)
    cache.parent.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="XDG_CACHE_HOME"):
        assert tune() == 256
    assert attention.slim_tokens() == 256


def test_an_interrupted_run_leaves_everything_as_it_was(cache, monkeypatch):
    def interrupted(_length):
        attention.set_slim_tokens(99)
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "_race", interrupted)
    attention.set_slim_tokens(7)
    with pytest.raises(KeyboardInterrupt):
        tune()
    assert attention.slim_tokens() == 7
    assert not cache.exists()


def test_a_user_without_a_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    apply_tuning()
