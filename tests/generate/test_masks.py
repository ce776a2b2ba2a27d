"""Masks of floats are read as what they show and hide, and anything else is no mask."""

import pytest
import torch

from torch_cpullm.generate.masks import of_tokens, visible

SHOWN = torch.ones(5, 5).tril().bool()[None, None]


def added(dtype, lowest):
    return torch.zeros(1, 1, 5, 5, dtype=dtype).masked_fill(~SHOWN, lowest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_show_and_the_lowest_numbers_hide(dtype):
    for lowest in (torch.finfo(dtype).min, -torch.inf):
        assert torch.equal(visible(added(dtype, lowest)), SHOWN)
    assert visible(SHOWN) is SHOWN


def test_what_adds_anything_else_is_no_mask():
    slopes = added(torch.float32, -torch.inf)
    slopes[..., 1, 0] = -0.5
    unknown = slopes.clone().fill_(float("nan"))
    for mask in (slopes, unknown, None, "causal", SHOWN[0], SHOWN.int()):
        assert visible(mask) is None


def test_a_mask_that_was_written_to_is_read_again():
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            mask = added(torch.float32, -torch.inf)
            before = visible(mask)
            mask[..., 0] = -torch.inf
            assert torch.equal(before, SHOWN)
            assert not visible(mask)[..., 0].any()


def test_tokens_that_count():
    assert of_tokens(torch.tensor([[0, 1, 1]])).tolist() == [[[[False, True, True]]]]
