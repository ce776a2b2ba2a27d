"""Angles that an attention looks up, and positions that it has none for."""

import pytest
import torch

from torch_cpullm.generate.angles import AngleTable

ANGLES_PA = torch.arange(9)[:, None] * torch.tensor([1.0, 0.1])
TABLE = AngleTable(torch.cat((ANGLES_PA.sin(), ANGLES_PA.cos()), dim=-1))
LIKE = torch.zeros(2, 3, 4)


def test_neighbouring_channels_turn_together():
    position_BT = torch.tensor([[0, 1, 8], [3, 3, 4]])
    cos_BTR, sin_BTR = TABLE(LIKE.bfloat16(), position_BT)
    angles_BTR = ANGLES_PA[position_BT][..., [0, 0, 1, 1]]
    assert torch.equal(cos_BTR, angles_BTR.cos().bfloat16())
    assert torch.equal(sin_BTR, angles_BTR.sin().bfloat16())


@pytest.mark.parametrize("position", [-1, 9])
def test_positions_that_the_table_does_not_have(position):
    with pytest.raises(IndexError, match=f"position_ids: expected 0 to 8, .*{position}.*shorten the text"):
        TABLE(LIKE, torch.tensor([[0, position]]))


def test_likeness():
    assert TABLE.is_like(AngleTable(TABLE.table_PR.clone()))
    assert not TABLE.is_like(AngleTable(TABLE.table_PR[:8]))
