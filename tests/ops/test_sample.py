"""The sampler against its definition and against transformers' own processors."""

import math
from dataclasses import replace

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from torch_cpullm.ops.sample import Filters, sample
from torch_cpullm.reference import sample as reference
from torch_cpullm.testing.guard import guarded

SIZES = [1, 2, 15, 16, 17, 63, 100, 257, 1023, 1024, 1025, 2500, 5000]  # around lanes (16) and blocks (1024)
FILTERS = {
    "nothing": Filters(),
    "temperature": Filters(temperature=0.7),
    "penalty": Filters(repetition_penalty=1.3),
    "reward": Filters(repetition_penalty=0.8),
    "top_k 1": Filters(top_k=1),
    "top_k 50": Filters(top_k=50),
    "top_k 700": Filters(top_k=700),  # more than a quarter of the lanes' maxima
    "top_p 0": Filters(top_p=0.0),
    "top_p 0.5": Filters(top_p=0.5),
    "top_p 0.9": Filters(top_p=0.9),
    "top_p 0.999": Filters(top_p=0.999),
    "min_p 0.05": Filters(min_p=0.05),
    "min_p 1": Filters(min_p=1.0),
    "all": Filters(temperature=0.8, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.2),
    "all, wide": Filters(temperature=1.7, top_k=900, top_p=0.97, min_p=1e-4, repetition_penalty=1.1),
}
NEAR = 1e-6  # of the probability mass: what sums in float32 lanes may move a border


def rows(size):
    """Rows of very different shapes, float32 [9, size], and ids seen so far, [9, 30], some of them twice."""
    normal = torch.randn(size)
    made = {
        "normal": normal * 2,
        "wide": normal * 8,
        "flat": normal * 0.01,
        "equal": torch.full((size,), -3.5),
        "peaked": torch.cat((normal, torch.tensor([14.0])))[1:],
        "few numbers": torch.randint(-3, 4, (size,)).float(),
        "bf16": (normal * 2).bfloat16().float(),
        "zipf": -torch.arange(2, size + 2).float().log() * 1.1,
        "partly ruled out": normal.masked_fill(torch.rand(size) < 0.6, -math.inf).index_fill(0, torch.tensor([0]), 0.5),
    }
    return torch.stack(list(made.values())), torch.randint(0, size, (len(made), 15)).repeat(1, 2)


def processors(filters):
    """What transformers would run, in its order."""
    every = {
        RepetitionPenaltyLogitsProcessor: (filters.repetition_penalty, 1.0),
        TemperatureLogitsWarper: (filters.temperature, 1.0),
        TopKLogitsWarper: (filters.top_k, 0),
        TopPLogitsWarper: (filters.top_p, 1.0),
        MinPLogitsWarper: (filters.min_p, 0.0),
    }
    return LogitsProcessorList(kind(number) for kind, (number, off) in every.items() if number != off)


def is_clear(logits_BV, ids_BS, filters, near):
    """Bool [B]: no token of the row is so near to a border of top_p or min_p that rounding may decide over it."""
    left_BV = reference.keep_top_k(reference.scores(logits_BV, ids_BS, filters), filters.top_k)
    clear_B = torch.ones(len(logits_BV), dtype=torch.bool)
    if 0.0 < filters.top_p < 1.0:
        mass_BV = left_BV.double().sort(dim=-1, stable=True).values.softmax(dim=-1).cumsum(dim=-1)
        clear_B &= ((mass_BV - (1.0 - filters.top_p)).abs() > near).all(dim=-1)
    if filters.min_p > 0.0:
        ratio_BV = (left_BV - left_BV.amax(dim=-1, keepdim=True)).double().exp() / filters.min_p
        clear_B &= ((ratio_BV - 1.0).abs() > near).logical_or(left_BV == left_BV.amax(dim=-1, keepdim=True)).all(-1)
    return clear_B


def check_sweep(logits_BV, ids_BS, filters, grid=40):
    """Sweep `uniform` over an even grid, and over the middle of up to as many kept tokens' share, for every row."""
    kept_BV = reference.kept(logits_BV, ids_BS, filters)
    share_BV = kept_BV.double().softmax(dim=-1)
    end_BV = share_BV.cumsum(dim=-1)
    for b in is_clear(logits_BV, ids_BS, filters, NEAR).nonzero()[:, 0].tolist():
        likely = (share_BV[b] > 4 * NEAR).nonzero()[:, 0]
        likely = likely[torch.randperm(len(likely))[:grid]]
        middle = end_BV[b, likely] - share_BV[b, likely] / 2
        uniform = torch.cat((torch.arange(grid, dtype=torch.float64) / grid, middle.clamp(max=1 - 1e-12)))
        seen = None if ids_BS is None else ids_BS[b].expand(len(uniform), -1)
        tokens = sample(logits_BV[b].expand(len(uniform), -1), seen, uniform, filters)
        assert torch.equal(tokens[grid:], likely)
        end, share = end_BV[b, tokens], share_BV[b, tokens]
        assert (share > 0.0).all()
        assert ((uniform > end - share - NEAR) & (uniform < end + NEAR)).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FILTERS)
def test_every_token_has_its_share(name, size):
    logits_BV, ids_BS = rows(size)
    check_sweep(logits_BV, ids_BS, FILTERS[name])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FILTERS)
def test_the_definition_keeps_what_transformers_keeps(name, size):
    filters = FILTERS[name]
    logits_BV, ids_BS = rows(size)
    theirs_BV = processors(filters)(ids_BS, logits_BV.clone())
    ours_BV = reference.kept(logits_BV, ids_BS, filters)
    clear_B = is_clear(logits_BV, ids_BS, filters, 1e-5)  # they add up in float32
    # The same scores, as often; which of equal ones top-p leaves is chance in theirs, whose sort is not stable.
    assert torch.equal(ours_BV[clear_B].sort().values, theirs_BV[clear_B].sort().values)
    has_ties_B = (reference.scores(logits_BV, ids_BS, filters).sort().values.diff() == 0.0).any(dim=-1)
    assert torch.equal(ours_BV[clear_B & ~has_ties_B], theirs_BV[clear_B & ~has_ties_B])
    assert clear_B.any()


def test_a_vocabulary_of_128256():
    logits_BV, ids_BS = torch.randn(3, 128256) * torch.tensor([[1], [3], [8]]), torch.randint(0, 128256, (3, 500))
    for name in ("nothing", "top_k 50", "top_k 700", "top_p 0.9", "all"):
        filters = FILTERS[name]
        check_sweep(logits_BV, ids_BS, filters)
        assert is_clear(logits_BV[2:], ids_BS[2:], filters, NEAR)
        theirs_BV = processors(filters)(ids_BS, logits_BV.clone())
        differ = int((theirs_BV.isfinite() != reference.kept(logits_BV, ids_BS, filters).isfinite()).sum())
        # Their float32 sum over 128256 tokens is off by some 1e-5, of which a token of this row has 1e-6.
        assert differ <= (50 if name == "top_p 0.9" else 0)


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_distribution(name):
    """Pearson's chi-square of 20000 draws against softmax of what transformers' processors return."""
    draws, size, filters = 20_000, 300, FILTERS[name]
    logits_1V, ids_1S = torch.randn(1, size) * 1.5, torch.randint(0, size, (1, 20))
    uniform_B = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens_B = sample(logits_1V.expand(draws, -1), ids_1S.expand(draws, -1), uniform_B, filters)
    seen_V = tokens_B.bincount(minlength=size).double()
    expected_V = processors(filters)(ids_1S, logits_1V.clone())[0].double().softmax(-1) * draws
    assert (seen_V[expected_V == 0.0] == 0).all()
    often = expected_V >= 5.0  # the others are one class together
    seen, expected = (torch.cat((x[often], x[~often].sum()[None])) for x in (seen_V, expected_V))
    real = expected > 0.0
    chi_square = ((seen - expected)[real] ** 2 / expected[real]).sum()
    freedom = torch.tensor(max(int(real.sum()) - 1, 1) / 2.0, dtype=torch.float64)
    assert torch.special.gammaincc(freedom, chi_square / 2) > 1e-4


@pytest.mark.parametrize("name", ["top_k 50", "top_k 700", "all", "all, wide"])
def test_words_that_top_k_leaves_out_need_not_be_there(name):
    """Ranks send each other candidates only: the same draw of the same probabilities, bit for bit."""
    filters = replace(FILTERS[name], repetition_penalty=1.0)
    scores, _ = rows(5000)
    for row in scores[:-1]:  # the last has fewer words than k
        candidates = (row >= row.topk(filters.top_k + 16).values[-1]).nonzero()[:, 0]
        uniform = torch.rand(500, dtype=torch.float64)
        among_all = sample(row.expand(500, -1), None, uniform, filters)
        among_candidates = sample(row[candidates].expand(500, -1), None, uniform, filters)
        assert torch.equal(candidates[among_candidates], among_all)


@pytest.mark.parametrize("name", FILTERS)
def test_a_rows_token_depends_on_nothing_else(name):
    logits_BV, ids_BS = rows(1500)
    uniform_B = torch.rand(len(logits_BV), dtype=torch.float64)
    torch.set_num_threads(1)
    expected = sample(logits_BV, ids_BS, uniform_B, FILTERS[name])
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        assert torch.equal(sample(logits_BV, ids_BS, uniform_B, FILTERS[name]), expected)
    for b in range(len(logits_BV)):
        alone = sample(logits_BV[b : b + 1], ids_BS[b : b + 1], uniform_B[b : b + 1], FILTERS[name])
        assert torch.equal(alone, expected[b : b + 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [7, 1030])
def test_half_dtypes_are_computed_in_float(dtype, size):
    logits_BV, ids_BS = rows(size)
    half_BV, uniform_B = logits_BV.to(dtype), torch.rand(len(logits_BV), dtype=torch.float64)
    for filters in FILTERS.values():
        assert torch.equal(
            sample(half_BV, ids_BS, uniform_B, filters), sample(half_BV.float(), ids_BS, uniform_B, filters)
        )


def test_a_penalty_counts_once():
    logits_BV = torch.tensor([[2.0, -1.0, 0.0, 1.5]])
    ids_BS = torch.tensor([[0, 1, 2, 0, 1, 1]])
    for quarter in range(40):
        uniform_B = torch.tensor([quarter / 40], dtype=torch.float64)
        filters = Filters(repetition_penalty=2.0)
        expected = reference.draw(torch.tensor([[1.0, -2.0, 0.0, 1.5]]), uniform_B)
        assert torch.equal(sample(logits_BV, ids_BS, uniform_B, filters), expected)


def test_the_ends_of_the_interval():
    almost_one = math.nextafter(1.0, 0.0)
    for size in SIZES:
        logits_BV, _ = rows(size)
        uniform_B = torch.full((len(logits_BV),), almost_one, dtype=torch.float64)
        for filters in FILTERS.values():
            if filters.repetition_penalty != 1.0:
                filters = replace(filters, repetition_penalty=1.0)
            possible_BV = reference.kept(logits_BV, None, filters).double().softmax(-1) > 0.0
            for tokens_B in (sample(logits_BV, None, u, filters) for u in (uniform_B * 0.0, uniform_B)):
                assert possible_BV.gather(1, tokens_B[:, None]).all()


CROWD = torch.rand(2999, generator=torch.Generator().manual_seed(0))
HARD = {
    "huge": torch.tensor([3e38, 2.9e38, -3e38, 0.0] * 30),
    "tiny": torch.tensor([1e-41, -1e-41, 0.0, -0.0] * 30),
    "one left": torch.tensor([-math.inf, -math.inf, -2.0, -math.inf] * 30),
    "far below": torch.tensor([0.0, -200.0, -1e30, -math.inf] * 30),
    "crowded": CROWD * 1e-38,  # even steps in score never tell them apart
    "crowded around zero": (CROWD - 0.5) * 1e-30,
    "crowded far out": 1e4 + CROWD,  # a thousand numbers for all of them
}


@pytest.mark.parametrize("inputs", HARD)
def test_hard_numbers(inputs):
    for name in ("nothing", "top_k 1", "top_k 700", "top_p 0.5", "top_p 0.999", "min_p 0.05"):
        check_sweep(HARD[inputs][None], None, FILTERS[name])


def test_strided_rows_are_as_good():
    logits_BV, ids_BS = rows(300)
    uniform_B = torch.rand(len(logits_BV), dtype=torch.float64)
    expected = sample(logits_BV, ids_BS, uniform_B, FILTERS["all"])
    last = torch.stack((logits_BV * 0.5, logits_BV), 1)[:, -1]  # as generate() slices them
    across = logits_BV.t().contiguous().t()
    assert torch.equal(sample(last, ids_BS.t().contiguous().t(), uniform_B, FILTERS["all"]), expected)
    assert torch.equal(sample(across, ids_BS, uniform_B, FILTERS["all"]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_is_read_behind_a_tensor(dtype):
    for size in (1, 15, 17, 1025):
        logits_BV, ids_BS = rows(size)
        logits_BV = logits_BV[-1:].to(dtype)
        uniform_B = torch.rand(1, dtype=torch.float64)
        for filters in FILTERS.values():
            got = sample(guarded(logits_BV), guarded(ids_BS[-1:]), guarded(uniform_B), filters)
            assert torch.equal(got, sample(logits_BV, ids_BS[-1:], uniform_B, filters))


def test_no_rows():
    assert sample(torch.zeros(0, 9), None, torch.zeros(0, dtype=torch.float64), Filters()).shape == (0,)


X, IDS, U = torch.randn(2, 9), torch.zeros(2, 3, dtype=torch.int64), torch.rand(2, dtype=torch.float64)


def bad_row(value):
    return X.index_fill(0, torch.tensor([1]), value)


MISUSE = {
    "logits dtype": (lambda: sample(X.double(), None, U, Filters()), TypeError, "logits: expected float32"),
    "logits rank": (lambda: sample(X[0], None, U, Filters()), ValueError, r"logits.*\[B, V\]"),
    "no vocabulary": (lambda: sample(X[:, :0], None, U, Filters()), ValueError, "logits: expected 1 to"),
    "logits gradient": (
        lambda: sample(X.clone().requires_grad_(), None, U, Filters()),
        NotImplementedError,
        "logits: .*gradient",
    ),
    "NaN": (lambda: sample(bad_row(math.nan), None, U, Filters()), ValueError, r"logits: row 1 holds NaN or \+Inf"),
    "+Inf": (lambda: sample(bad_row(math.inf), None, U, Filters()), ValueError, r"logits: row 1 holds NaN or \+Inf"),
    "-Inf": (lambda: sample(bad_row(-math.inf), None, U, Filters()), ValueError, "logits: row 1 .*nothing but -Inf"),
    "overflow": (
        lambda: sample(bad_row(1e38), None, U, Filters(temperature=1e-3)),
        ValueError,
        "row 1 .*after penalty and temperature",
    ),
    "ids dtype": (lambda: sample(X, IDS.int(), U, Filters()), TypeError, "ids: expected Long"),
    "ids rank": (lambda: sample(X, IDS[0], U, Filters()), ValueError, "ids.*B, S"),
    "ids rows": (lambda: sample(X, IDS[:1], U, Filters()), ValueError, "ids"),
    "ids missing": (
        lambda: sample(X, None, U, Filters(repetition_penalty=1.1)),
        ValueError,
        "ids: .*repetition_penalty of 1.1, got None",
    ),
    "ids too large": (lambda: sample(X, IDS + 9, U, Filters()), IndexError, "ids: expected 0 to 8, got 9"),
    "ids negative": (lambda: sample(X, IDS - 1, U, Filters()), IndexError, "ids.*got -1"),
    "uniform dtype": (lambda: sample(X, None, U.float(), Filters()), TypeError, "uniform"),
    "uniform rows": (lambda: sample(X, None, U[:1], Filters()), ValueError, "uniform"),
    "uniform of 1": (lambda: sample(X, None, torch.ones_like(U), Filters()), ValueError, "uniform: .*got 1 in row 0"),
    "uniform of NaN": (lambda: sample(X, None, U * math.nan, Filters()), ValueError, "uniform"),
    "temperature of 0": (lambda: sample(X, None, U, Filters(temperature=0.0)), ValueError, "temperature.*got 0"),
    "tiny temperature": (lambda: sample(X, None, U, Filters(temperature=1e-60)), ValueError, "temperature"),
    "top_k": (lambda: sample(X, None, U, Filters(top_k=-1)), ValueError, "top_k: .*got -1"),
    "top_p": (lambda: sample(X, None, U, Filters(top_p=1.5)), ValueError, "top_p: expected 0 to 1, got 1.5"),
    "top_p of NaN": (lambda: sample(X, None, U, Filters(top_p=math.nan)), ValueError, "top_p"),
    "min_p": (lambda: sample(X, None, U, Filters(min_p=-0.1)), ValueError, "min_p"),
    "penalty": (lambda: sample(X, IDS, U, Filters(repetition_penalty=-1.0)), ValueError, "repetition_penalty"),
    "meta": (lambda: sample(X.to("meta"), None, U, Filters()), RuntimeError, "logits: .*got one on meta"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_named(case):
    call, error, words = MISUSE[case]
    with pytest.raises(error, match=words):
        call()
