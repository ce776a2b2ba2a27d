"""Norms and activations are recognised by what they compute."""

import pytest
import torch
from torch import nn

from torch_cpullm.detect.probes import (
    NormProbe,
    probe_activation,
    probe_angles,
    probe_linear,
    probe_norm,
    probe_rope,
)


class Rms(nn.Module):
    """An RMS norm under an unknown name."""

    def __init__(self, eps, offset, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24).to(dtype))
        self.some_eps, self.other = eps, 0.001
        self.offset = offset

    def forward(self, x):
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.some_eps)
        return (scaled * (self.weight.float() + self.offset)).to(x.dtype)


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 1e-8])
@pytest.mark.parametrize("offset", [0, 1])
def test_rms_norms_are_found_with_their_numbers(eps, offset):
    probe = probe_norm(Rms(eps, offset))
    assert probe is not None
    assert (probe.eps, probe.offset, probe.width) == (eps, offset, 24)


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norms_are_found(eps, bias):
    module = nn.LayerNorm(24, eps=eps, bias=bias)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    assert probe_norm(module) == NormProbe(eps, 0.0, 24, centred=True)


@pytest.mark.parametrize("pairs", [True, False])
def test_angles_are_looked_at(pairs):
    class Angles(nn.Module):
        def __init__(self):
            super().__init__()
            self.inv_freq = torch.logspace(0, -3, 8)

        def forward(self, x, position_ids):
            angles = position_ids[..., None] * self.inv_freq
            angles = angles.repeat_interleave(2, -1) if pairs else angles.repeat(1, 1, 2)
            return angles.cos(), angles.sin()

    assert probe_rope(Angles()) is pairs
    assert probe_rope(nn.Linear(2, 2)) is None


def test_tables_of_angles():
    angles = torch.arange(9)[:, None] * torch.logspace(0, -3, 8)
    table_PR = torch.cat((angles.sin(), angles.cos()), dim=-1)
    assert probe_angles(table_PR)
    assert probe_angles(table_PR.bfloat16())
    assert not probe_angles(table_PR.roll(8, dims=-1))  # cosines first
    assert not probe_angles(table_PR[1:])  # positions from 1
    assert not probe_angles(torch.rand(9, 16))
    assert not probe_angles(table_PR[None])
    assert not probe_angles(None)


class OtherWords(nn.Linear):
    def forward(self, input):
        product = input @ self.weight.T
        return product if self.bias is None else product + self.bias


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class Scaled(nn.Linear):
    """Keeps a number that it may or may not use."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = 1.0

    def forward(self, input):
        return super().forward(input) * self.scale


class Shy(nn.Linear):
    """Computes nothing of its own, so someone else knows why it is."""


class Broken(nn.Linear):
    def forward(self, input):
        raise ValueError


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_in_other_words(bias):
    assert probe_linear(nn.Linear(7, 4, bias))
    assert probe_linear(OtherWords(7, 4, bias))
    for kind in (Doubled, Scaled, Shy, Broken):
        assert not probe_linear(kind(7, 4, bias))
    assert not probe_linear(nn.Embedding(7, 4))
    with_more = OtherWords(7, 4, bias)
    with_more.register_buffer("more", torch.zeros(1))
    assert not probe_linear(with_more)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_norms(dtype):
    probe = probe_norm(Rms(1e-6, 1, dtype))
    assert probe is not None
    assert probe.offset == 1


@pytest.mark.parametrize(
    "module", [nn.LayerNorm(24, elementwise_affine=False), nn.Linear(24, 24), nn.Identity(), nn.Embedding(4, 4)]
)
def test_others_are_not(module):
    assert probe_norm(module) is None


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.SiLU(), "silu"),
        (nn.GELU(), "gelu_erf"),
        (nn.GELU(approximate="tanh"), "gelu_tanh"),
        (nn.ReLU(), "relu"),
        (nn.Softplus(), None),
        (lambda x: x * torch.sigmoid(1.702 * x), None),
        (lambda x: x.sum(), None),
        (None, None),
    ],
)
def test_activations(module, name):
    assert probe_activation(module) == name
