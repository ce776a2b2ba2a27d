"""Collectives over oneCCL: their bits, and what happens when a rank is lost."""

import re
from pathlib import Path

import pytest

from tests.distributed import library_ranks
from torch_cpullm import config
from torch_cpullm.distributed import ccl
from torch_cpullm.errors import ConfigError
from torch_cpullm.testing.ranks import run_ranks


def why_not():
    try:
        ccl.find_ccl()
    except ConfigError as error:
        return str(error)
    return ""


needs_oneccl = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture
def _dev_shm_stays_clean():
    before = set(Path("/dev/shm").iterdir())
    yield
    after = [path.name for path in set(Path("/dev/shm").iterdir()) - before]
    assert not [name for name in after if re.fullmatch(r"\d+(:\d+)+", name)], "files of oneCCL"


@needs_oneccl
@pytest.mark.usefixtures("_dev_shm_stays_clean")
@pytest.mark.parametrize("size", [2, 4])
def test_every_operation_and_random_ones(size):
    assert run_ranks(library_ranks.all_that_works, size, "ccl") == [[]] * size


@needs_oneccl
@pytest.mark.parametrize("kinds", library_ranks.KINDS)
def test_another_shape_is_told(kinds):
    for texts in run_ranks(library_ranks.another_tensor, 2, "ccl", kinds):
        for first, then in texts.values():
            # Where the sizes differ oneCCL loses the connection, and a rank that is told first may end first.
            assert re.search("asked for another shape|has ended", first)
            assert then == first


@needs_oneccl
@pytest.mark.usefixtures("_dev_shm_stays_clean")
@pytest.mark.parametrize(("how", "size"), [("killed", 3), ("raised", 2), ("stopped", 2)])
def test_survivors_are_told_of_a_lost_rank(how, size):
    *survivors, _ = run_ranks(library_ranks.lost, size, "ccl", how, lost=(size - 1,))
    words = f"waited 2 s for rank {size - 1}; is it stopped" if how == "stopped" else f"rank {size - 1} has ended"
    for text, seconds in survivors:
        assert text.startswith("all_reduce of 5000 float32: ")
        assert words in text
        assert seconds < library_ranks.PATIENCE_S  # told, and not left to wait


def test_a_rank_without_oneccl_is_named(monkeypatch):
    texts = run_ranks(library_ranks.without_oneccl, 2)
    for text in texts:
        assert text.startswith("no oneCCL between the ranks: ")
        assert "rank 1: oneCCL: expected" in text
        assert 'pip install "torch_cpullm[ccl]"' in text or "build it again" in text


def test_variables_are_set_where_the_user_has_not(monkeypatch):
    monkeypatch.setenv("CCL_ATL_SHM", "1")
    monkeypatch.delenv("CCL_KVS_IFACE", raising=False)
    with config.variables_for({"CCL_ATL_SHM": "0", "CCL_KVS_IFACE": "lo"}):
        inside = config.environment()
    assert (inside["CCL_ATL_SHM"], inside["CCL_KVS_IFACE"]) == ("1", "lo")
    assert config.environment()["CCL_ATL_SHM"] == "1"
    assert "CCL_KVS_IFACE" not in config.environment()
