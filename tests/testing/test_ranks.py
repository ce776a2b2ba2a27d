"""The processes that tests of ranks run in: what they inherit, what they are told, and that none stays."""

import os
from pathlib import Path

import pytest
import torch

from tests.testing import told_ranks
from torch_cpullm.testing.ranks import run_ranks


def test_ranks_are_told_what_the_parent_has_now(monkeypatch, tmp_path):
    run_ranks(told_ranks.told, 1)  # the server is there from now on
    monkeypatch.setenv("TORCH_CPULLM_ISA", "avx2,-avxvnni")
    monkeypatch.delenv("PATH")
    monkeypatch.chdir(tmp_path)
    first, second = run_ranks(told_ranks.told, 2, "a", {"b": torch.tensor(3)})
    for rank, found in enumerate((first, second)):
        assert found["rank"] == (rank, 2)
        assert found["arguments"] == ["a", {"b": torch.tensor(3)}]
        assert found["folder"] == str(tmp_path)
        assert found["variables"] == dict(os.environ)
        assert found["level"] == "avx2"
    assert first["process"] != second["process"]


def test_ranks_compute_on_several_threads():
    """The server has one alone, so nothing of an OpenMP team was lost when a rank was forked from it."""
    (found,) = run_ranks(told_ranks.told, 1)
    assert found["threads of the server"] == 1
    assert found["own threads"] > 1


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raises", "rank 1: Traceback (?s:.*)KeyError: .of the rank's own"),
        ("killed", "rank 1: it ended without an answer, exit status -9"),
        ("stopped", "rank 1: no answer within 3 s"),
    ],
)
def test_what_became_of_a_rank_is_told(how, words):
    with pytest.raises(RuntimeError, match=words):
        run_ranks(told_ranks.ends, 2, how, timeout_s=3.0 if how == "stopped" else 900.0)


@pytest.mark.parametrize("how", ["raises", "killed", "stopped"])
def test_a_rank_that_is_meant_to_be_lost(how):
    process, nothing = run_ranks(told_ranks.ends, 2, how, lost=(1,))
    assert nothing is None
    assert not Path(f"/proc/{process}").exists()
