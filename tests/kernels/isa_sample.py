"""Run by test_isa.py in a process of its own, with TORCH_CPULLM_ISA set: one sample of every op, saved to a file.

What kernels read ends at a closed page (testing/guard.py): at every level, reading behind a tensor ends the process.
"""

import itertools
import sys

import torch

from torch_cpullm.formats import INT4, INT8
from torch_cpullm.ops import introspect, linear, rowwise
from torch_cpullm.ops import sample as ops_sample
from torch_cpullm.ops.attention import ScoreRules, paged_attention, slim_attention
from torch_cpullm.testing.formats import FORMATS
from torch_cpullm.testing.guard import guarded
from torch_cpullm.testing.pages import filled_pages


def plain(*shape):
    """Values in [-2, 2), exact: randn, exp and cos have the bits of whatever code torch and MKL take in a process."""
    return torch.randint(-(2**20), 2**20, shape) / 2**19


POWERS = torch.tensor([2.0**exponent for exponent in range(-4, 5)])


def hard(*shape):
    """Values over many magnitudes, some of them zero or denormal."""
    x = plain(*shape) * POWERS[torch.randint(0, len(POWERS), shape)]
    x.flatten()[::17] = 0.0
    x.flatten()[5::29] = 1e-41
    return guarded(x)


ACTIVATIONS = ("silu", "gelu_tanh", "gelu_erf", "relu")

# Rows, columns, depth: no whole tile of anything, and with AMX a pair of tiles, one, and less than one.
SHAPES = [(1, 65, 300), (5, 64, 257), (7, 130, 31), (13, 1, 1), (17, 66, 300), (62, 9, 256), (145, 70, 520)]


FILTERS = {
    "plain": ops_sample.Filters(),
    "top_k": ops_sample.Filters(temperature=0.7, top_k=20),
    "top_p": ops_sample.Filters(top_p=0.9),
    "all": ops_sample.Filters(temperature=1.5, top_k=500, top_p=0.95, min_p=0.001, repetition_penalty=1.2),
}


def sample():
    out = {}
    for name, format in FORMATS.items():
        for rows, columns, depth in SHAPES:
            weight, bias = hard(columns, depth), plain(columns)
            packed = linear.pack(weight, bias, format)
            out[f"input {name} {columns} {depth}"] = weight.clone()
            out[f"pack {name} {columns} {depth}"] = packed
            out[f"linear {name} {rows} {columns} {depth}"] = linear.linear(hard(rows, depth), guarded(packed))
    packed = linear.pack(hard(65, 300), None, INT8)
    for dtype in (torch.bfloat16, torch.float16):
        out[f"linear of {dtype}"] = linear.linear(guarded(hard(3, 300).to(dtype)), packed)
        out[f"pack of {dtype}"] = linear.pack(guarded(hard(65, 300).to(dtype)), None, INT4)
    for width in (1, 16, 50, 100):
        out[f"rms_norm {width}"] = rowwise.rms_norm(hard(4, width), plain(width), 1e-6, 1.0)
        out[f"layer_norm {width}"] = rowwise.layer_norm(hard(4, width), plain(width), plain(width))
        out[f"layer_norm without bias {width}"] = rowwise.layer_norm(hard(4, width), plain(width))
        for activation in ACTIVATIONS:
            out[f"gated {activation} {width}"] = rowwise.gated(hard(4, width) * 9, hard(4, width), activation)
            out[f"activation {activation} {width}"] = rowwise.gated(hard(4, width) * 9, None, activation)
    angles = plain(2, 1, 6, 34)
    out["rope"] = rowwise.rope(hard(2, 6, 3, 48), *angles)
    out["rope of pairs"] = rowwise.rope(hard(2, 6, 3, 48), *angles, pairs=True)
    for format in ("f32", "bf16", "int8"):
        for tokens, past, heads, channels in ((1, 0, 4, 16), (1, 299, 6, 80), (40, 60, 2, 32), (19, 0, 8, 64)):
            key, value = plain(2, 2, past + tokens, 2, channels)
            query = guarded(plain(2, tokens, heads, channels))
            kv = filled_pages(guarded(key), guarded(value), torch.full((2,), past), format)
            kv = kv._replace(pages=guarded(kv.pages[:-1]))  # the last one is a spare
            name = f"attention {format} {tokens} {past} {heads} {channels}"
            out[name] = paged_attention(query, kv, channels**-0.5, ScoreRules(soft_cap=20.0 if heads == 6 else 0.0))
            mask = guarded(plain(2, 1, tokens, past + tokens) < -0.4)
            out[f"{name} masked"] = paged_attention(query, kv, channels**-0.5, ScoreRules(mask=mask))
            out[f"{name} pages"] = kv.pages
    out["slim"] = slim_attention(plain(1, 9, 4, 32), *plain(2, 1, 20, 2, 32), 0.2)
    for name, filters in FILTERS.items():
        for size in (1, 50, 1100, 3000):
            logits, ids = hard(4, size) * 3, torch.randint(0, size, (4, 20))
            uniform = torch.randint(0, 2**20, (100, 4)).double() / 2**20
            out[f"sample {name} {size}"] = torch.stack([ops_sample.sample(logits, ids, u, filters) for u in uniform])
    out |= sample_sums()
    for name, result in sample_bad_rows():
        out[f"{name} bad"] = result.nan_to_num(nan=123.0, posinf=456.0, neginf=-456.0)  # so that equal means equal
    return out


def sample_sums():
    """Three ranks' parts of every type, alone and beside a residual of every type."""
    out, types = {}, (torch.float32, torch.bfloat16, torch.float16)
    for width, dtype in itertools.product((1, 16, 50, 100), types):
        parts = [guarded(hard(4, width).to(dtype)) for _ in range(3)]
        out[f"sum {width} {dtype}"] = rowwise.sum_parts(parts)
        for other in types:
            out[f"sum {width} {dtype} {other}"] = rowwise.sum_parts(parts, guarded(hard(4, width).to(other)))
    return out


def sample_bad_rows():
    """Rows with NaN and Inf; what max, min and compare do with those is a part of what lanes must agree on."""
    x = hard(9, 300)
    x[2, 7], x[4, 299], x[6, 0] = float("nan"), float("inf"), float("-inf")
    for name, format in FORMATS.items():
        yield f"linear {name}", linear.linear(x, linear.pack(hard(65, 300), None, format))
    for format in ("f32", "bf16", "int8"):
        key, value = plain(2, 1, 40, 1, 16)
        key[0, 9, 0, 3], value[0, 21, 0, 15], value[0, 22, 0, 0] = float("nan"), float("inf"), float("nan")
        yield (
            f"attention {format}",
            paged_attention(plain(1, 40, 2, 16), filled_pages(key, value, torch.zeros(1), format), 0.25),
        )
    yield "rms_norm", rowwise.rms_norm(x, plain(300), 1e-6)
    yield "layer_norm", rowwise.layer_norm(x, plain(300), plain(300))
    for activation in ACTIVATIONS:
        yield activation, rowwise.gated(x, x, activation)


if __name__ == "__main__":
    torch.manual_seed(0)
    results = sample()
    ran = [kernel.name for kernel in introspect.kernel_report() if kernel.calls]
    torch.save({"results": results, "level": introspect.isa_level(), "ran": ran}, sys.argv[1])
