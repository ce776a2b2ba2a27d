"""Factors that move outlier channels from activations into weights."""

import pytest
import torch

from torch_cpullm.formats import INT8
from torch_cpullm.ops.linear import linear, pack
from torch_cpullm.pack import choose_multiplier


def outlier_problem():
    x, weight = torch.randn(64, 512), torch.randn(96, 512) / 20
    x[:, [5, 100, 300]] *= 60
    weight[:, [5, 100, 300]] /= 60
    return x, weight


def error(x, weight, multiplier):
    exact = x.double() @ weight.double().T
    return float((linear(x, pack(weight, None, INT8, multiplier)) - exact).norm() / exact.norm())


def test_ordinary_activations_are_left_as_they_are():
    assert choose_multiplier(torch.randn(64, 512).abs().amax(0), [torch.randn(96, 512)]) is None


def test_outliers_get_powers_of_two_that_help():
    x, weight = outlier_problem()
    multiplier = choose_multiplier(x.abs().amax(0), [weight])
    assert torch.equal(torch.exp2(multiplier.log2().round()), multiplier)
    assert (multiplier[[5, 100, 300]] <= 1 / 32).all()
    assert multiplier.median() == 1.0
    assert error(x, weight, multiplier) < 0.02 < 0.08 < error(x, weight, None)


def test_all_weights_that_share_the_input_count():
    x, weight = outlier_problem()
    loud = weight.clone()
    loud[:, 5] *= 60 * 60  # where one of them needs the channel as it is, it is moved less
    alone, together = (choose_multiplier(x.abs().amax(0), list(ws)) for ws in ((weight,), (weight, loud)))
    assert together[5] > alone[5]


@pytest.mark.parametrize("fault", ["silent", "nan activation", "inf activation", "nan weight", "zero weight"])
def test_faults_give_no_factor_rather_than_a_wrong_one(fault):
    x, weight = outlier_problem()
    absmax = x.abs().amax(0)
    if fault == "silent":
        absmax.zero_()
    elif fault.endswith("activation"):
        absmax[7] = float(fault.split()[0])
    else:
        weight[:] = float("nan") if fault == "nan weight" else 0.0
    assert choose_multiplier(absmax, [weight]) is None


def test_silent_channels_count_as_typical():
    x, weight = outlier_problem()
    absmax, weight[:, 9] = x.abs().amax(0), 0.0
    absmax[8] = 0.0
    multiplier = choose_multiplier(absmax, [weight])
    assert multiplier.isfinite().all()
    assert multiplier[8] == 1.0
    assert 0.25 <= multiplier[9] <= 4.0
