"""What else people do with models that ranks share: forks, copies, second thoughts, threads."""

import pytest
import torch

import torch_cpullm
from tests.distributed import lifecycle_ranks
from tests.distributed.test_models import TRANSPORTS
from torch_cpullm.testing.models import WHOLE, bundled_model, tiny_model
from torch_cpullm.testing.ranks import run_ranks

NOT_THE_RANK = "CollectiveError: group: expected the process that opened it, got a child that was forked"
CLOSED = "ValueError: group: expected one that is open, got "
PART = "UnsupportedModelError: model: expected a whole one, got the part of rank "
SHARED = "UnsupportedModelError: model: expected one that no ranks share, got that of rank "


@pytest.fixture(scope="module")
def alone():
    """Tokens of one rank."""
    return lifecycle_ranks.tokens(torch_cpullm.optimize(bundled_model(), **lifecycle_ranks.KEPT))


def assert_all_equal(found, expected):
    for index, ids in enumerate(found):
        assert torch.equal(ids, expected), index


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_forked_child_is_not_the_rank(transport, alone):
    """It is told so in whatever it asks of the group, and may leave it: the rank notices nothing."""
    for found in run_ranks(lifecycle_ranks.forked, 2, transport):
        assert_all_equal(found["tokens"], alone)
        assert len(found["tokens"]) == 4
        assert all(text.startswith(NOT_THE_RANK) for text in found["child"]), found["child"]
        assert all("torch_cpullm.distributed.shutdown()" in text for text in found["child"])
        assert torch.equal(found["alone"], alone)
        assert torch.equal(torch.cat(found["batches"]), torch.arange(8))


def test_a_copy_of_a_part_is_a_second_handle_and_a_file_of_it_is_refused(alone):
    for rank, found in enumerate(run_ranks(lifecycle_ranks.copied, 2)):
        assert_all_equal(found["tokens"], alone)
        assert all(text.startswith(f"{SHARED}{rank} of 2") for text in found["refused"]), found["refused"]
        *refused, copied = found["left"]
        assert all(text.startswith(CLOSED) and "loaded again after init()" in text for text in refused), refused
        assert copied == ""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_two_models_at_once_and_a_world_after_the_first(transport, alone):
    tiny = torch_cpullm.optimize(tiny_model(*WHOLE["qwen3"]), **lifecycle_ranks.KEPT)
    second = tiny.generate(lifecycle_ranks.IDS, max_new_tokens=12, do_sample=False)
    for rank, found in enumerate(run_ranks(lifecycle_ranks.again, 2, transport)):
        assert_all_equal(found["first"], alone)
        assert_all_equal(found["second"], second)
        assert found["world"] == (rank, 2)
        assert found["old"].startswith(CLOSED)
        assert found["old too"].startswith(PART)


def test_a_world_that_does_not_open_may_be_tried_again(alone):
    for found in run_ranks(lifecycle_ranks.second_try, 2):
        assert "rank 1" in found["first"]
        assert_all_equal(found["tokens"], alone)


def test_a_mistake_on_one_rank_between_two_calls(alone):
    first, second = run_ranks(lifecycle_ranks.mistaken, 2)
    assert second["own"] == "KeyError: 'a key'"
    for found in (first, second):
        assert_all_equal(found["tokens"], alone)
        assert found["left out"] == (
            "RankError: generate: expected the same max_new_tokens on all ranks, got another on rank 1 than on rank 0"
        )


def test_any_thread_may_generate_but_one_at_a_time(alone):
    for found in run_ranks(lifecycle_ranks.in_threads, 2):
        assert_all_equal(found["tokens"], alone)
        assert len(found["tokens"]) == 3
        for text in found["meanwhile"]:
            assert text.startswith("RankError: generate: expected one call at a time on the ranks")
