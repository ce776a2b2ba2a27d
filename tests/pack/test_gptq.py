"""The GPTQ solve: on the grid, equal to the paper's own step, better than rounding to nearest, and never NaN."""

import pytest
import torch

from torch_cpullm.modules.calibrate import grid_of, storable
from torch_cpullm.ops.linear import Scales, pack, unpack
from torch_cpullm.pack.gptq import Grid, Hessian, solve
from torch_cpullm.testing.formats import FORMATS

SYMMETRIC = Grid(lowest=-8, highest=7, symmetric=True)
ASYMMETRIC = Grid(lowest=0, highest=15, symmetric=False)
INT8 = Grid(lowest=-127, highest=127, symmetric=True)
GRIDS = pytest.mark.parametrize("grid", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
DEPTH = 300  # neither a multiple of 32 nor of a block of 128, and more than two blocks


@pytest.fixture(autouse=True)
def _one_thread():
    """Thousands of steps too small to share: beside a busy core, a second thread makes them 30 times slower."""
    torch.set_num_threads(1)


def half(_, scale_NG):
    return scale_NG.half().float()


def correlated(rows, depth=DEPTH):
    """Rows whose features share 24 causes, with some noise and a few loud features, as activations have."""
    loudness_K = torch.ones(depth)
    loudness_K[::37] = 8.0
    return (torch.randn(rows, 24) @ torch.randn(24, depth) / 5 + 0.3 * torch.randn(rows, depth)) * loudness_K


def gram(x_MK):
    hessian = Hessian(x_MK.shape[1])
    hessian.add(x_MK)
    return hessian.matrix_KK


def per_column(value_NG, group_size, depth=DEPTH):
    return value_NG.repeat_interleave(group_size or depth, dim=1)[:, :depth]


def assert_on_grid(solution, grid, group_size):
    depth = solution.weight_NK.shape[1]
    scale_NK, zero_NK = (per_column(value, group_size, depth) for value in (solution.scale_NG, solution.zero_NG))
    assert solution.weight_NK.isfinite().all()
    assert (solution.weight_NK[scale_NK == 0] == 0).all()
    assert torch.equal(solution.scale_NG, half(None, solution.scale_NG))
    code_NK = torch.where(scale_NK == 0, 0.0, solution.weight_NK / scale_NK).round() + zero_NK
    assert torch.equal((code_NK - zero_NK) * scale_NK, solution.weight_NK)
    assert code_NK.min() >= grid.lowest
    assert code_NK.max() <= grid.highest
    assert torch.equal(zero_NK, zero_NK.round().clamp(grid.lowest, grid.highest))
    assert not grid.symmetric or (zero_NK == 0).all()


def nearest(weight_NK, solution, grid, group_size):
    """The weight rounded to the solution's own grid by trying every code."""
    scale_NK, zero_NK = (per_column(value, group_size)[..., None] for value in (solution.scale_NG, solution.zero_NG))
    value_NKC = (torch.arange(grid.lowest, grid.highest + 1.0) - zero_NK) * scale_NK
    choice_NK = (value_NKC - weight_NK[..., None]).abs().argmin(dim=2, keepdim=True)
    return value_NKC.gather(2, choice_NK)[..., 0]


@pytest.mark.parametrize("grid", [SYMMETRIC, ASYMMETRIC, INT8], ids=["symmetric", "asymmetric", "int8"])
@pytest.mark.parametrize(
    ("group_size", "dtype"),
    [(0, torch.float32), (7, torch.float64), (32, torch.bfloat16), (200, torch.float16), (1024, torch.float32)],
)
def test_every_weight_is_on_the_grid(grid, group_size, dtype):
    weight_NK = torch.randn(16, DEPTH).to(dtype)
    solution = solve(weight_NK, gram(correlated(500)), grid, group_size, half)
    assert solution.weight_NK.dtype == solution.scale_NG.dtype == solution.zero_NG.dtype == torch.float32
    assert solution.scale_NG.shape == solution.zero_NG.shape == (16, -(-DEPTH // group_size) if group_size else 1)
    assert_on_grid(solution, grid, group_size)


@GRIDS
@pytest.mark.parametrize("group_size", [0, 32])
def test_equals_the_papers_elimination(grid, group_size):
    weight_NK, hessian_KK = torch.randn(32, DEPTH), gram(correlated(500)).double()
    solution = solve(weight_NK, hessian_KK, grid, group_size, half)
    scale_NK, zero_NK = (per_column(value, group_size).double() for value in (solution.scale_NG, solution.zero_NG))
    inverse_KK = torch.linalg.inv(hessian_KK + 0.01 * hessian_KK.diagonal().mean() * torch.eye(DEPTH))
    expected_NK, left_NK = torch.empty(32, DEPTH), weight_NK.double()
    for k in range(DEPTH):
        scale_N, zero_N = scale_NK[:, k], zero_NK[:, k]
        code_N = (left_NK[:, k] / scale_N).round().add(zero_N).clamp(grid.lowest, grid.highest)
        expected_NK[:, k] = (code_N - zero_N) * scale_N
        error_N = (left_NK[:, k] - expected_NK[:, k]) / inverse_KK[k, k]
        left_NK = left_NK - error_N[:, None] * inverse_KK[k]
        inverse_KK = inverse_KK - inverse_KK[:, k, None] * inverse_KK[k] / inverse_KK[k, k]
    # float32 may break a near tie the other way, and then the rest of that row goes another way too
    assert (solution.weight_NK == expected_NK).all(dim=1).sum() >= 30


@GRIDS
@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("depth", [DEPTH, 256])
def test_loses_less_than_rounding_to_nearest(grid, group_size, depth):
    weight_NK, x_MK = torch.randn(64, depth), correlated(1000, depth)
    hessian_KK, unseen_MK = gram(x_MK[:600]), x_MK[600:]
    alone_KK = torch.diag(hessian_KK.diagonal())  # the same search for scales, and no feedback
    errors = [
        (unseen_MK @ (weight_NK - solve(weight_NK, matrix_KK, grid, group_size, half).weight_NK).T).norm()
        for matrix_KK in (hessian_KK, alone_KK)
    ]
    assert errors[0] < 0.85 * errors[1]


@GRIDS
@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("case", ["identity", "diagonal", "no rows", "no factor"])
def test_without_correlation_rounds_to_nearest(grid, group_size, case):
    hessian_KK = {
        "identity": torch.eye(DEPTH),
        "diagonal": torch.diag(torch.rand(DEPTH)),
        "no rows": Hessian(DEPTH).matrix_KK,
        "no factor": 10.0 - 9.0 * torch.eye(DEPTH),  # eigenvalues of -9: a damping of 1 does not mend it
    }[case]
    weight_NK = torch.randn(16, DEPTH)
    solution = solve(weight_NK, hessian_KK, grid, group_size, half)
    best_NK = nearest(weight_NK, solution, grid, group_size)
    torch.testing.assert_close((solution.weight_NK - weight_NK).abs(), (best_NK - weight_NK).abs())


@GRIDS
@pytest.mark.parametrize("group_size", [0, 32])
def test_dead_inputs_neither_give_nor_take(grid, group_size):
    x_MK = correlated(500)
    dead_K = torch.zeros(DEPTH, dtype=torch.bool)
    dead_K[5:9] = dead_K[64:96] = dead_K[-1] = True  # some of a group, all of a group, and the last
    x_MK[:, dead_K] = 0.0
    weight_NK = torch.randn(16, DEPTH)
    solution = solve(weight_NK, gram(x_MK), grid, group_size, half)
    assert_on_grid(solution, grid, group_size)
    best_NK = nearest(weight_NK, solution, grid, group_size)
    torch.testing.assert_close(solution.weight_NK[:, dead_K], best_NK[:, dead_K])
    assert not torch.equal(solution.weight_NK[:, ~dead_K], best_NK[:, ~dead_K])


@GRIDS
@pytest.mark.parametrize("rows", [1, 40])
def test_fewer_rows_than_inputs(grid, rows):
    weight_NK, x_MK = torch.randn(16, DEPTH), correlated(rows)
    solution = solve(weight_NK, gram(x_MK), grid, 32, half)
    assert_on_grid(solution, grid, 32)
    best_NK = nearest(weight_NK, solution, grid, 32)
    assert (x_MK @ (weight_NK - solution.weight_NK).T).norm() < 0.5 * (x_MK @ (weight_NK - best_NK).T).norm()


def test_a_matrix_that_only_more_damping_factors():
    hessian_KK = gram(correlated(500))
    hessian_KK -= 0.05 * hessian_KK.diagonal().mean() * torch.eye(DEPTH)  # as rounding might; 1 % does not mend it
    weight_NK = torch.randn(16, DEPTH)
    got, expected = (solve(weight_NK, hessian_KK, SYMMETRIC, 32, half, damping=damping) for damping in (0.01, 0.1))
    assert torch.equal(got.weight_NK, expected.weight_NK)
    assert not torch.equal(got.weight_NK, nearest(weight_NK, got, SYMMETRIC, 32))


@GRIDS
def test_groups_and_rows_of_zeros(grid):
    weight_NK = torch.randn(16, 96)
    weight_NK[3] = 0.0
    weight_NK[:, 32:64] = 0.0
    solution = solve(weight_NK, torch.eye(96), grid, 32, half)
    assert_on_grid(solution, grid, 32)
    assert (solution.scale_NG[weight_NK.view(16, 3, 32).eq(0).all(dim=2)] == 0).all()
    assert (solution.weight_NK[weight_NK == 0] == 0).all()


def test_the_largest_value_takes_the_odd_code_of_either_sign():
    weight_NK = torch.arange(-7.0, 9.0).expand(2, 16) * torch.tensor([[1.0], [-1.0]])
    solution = solve(weight_NK, torch.eye(16), SYMMETRIC, 0, half)
    assert torch.equal(solution.weight_NK, weight_NK)
    assert solution.scale_NG.flatten().tolist() == [-1.0, 1.0]


def test_a_scale_that_overflows_is_not_taken():
    solution = solve(
        torch.randn(4, 64), torch.eye(64), SYMMETRIC, 32, lambda _, scale: torch.full_like(scale, torch.inf)
    )
    assert (solution.scale_NG == 0).all()
    assert (solution.weight_NK == 0).all()


def test_arguments_stay_as_they_are_and_twice_is_the_same():
    weight_NK, hessian_KK = torch.randn(16, DEPTH), gram(correlated(500))
    copies = weight_NK.clone(), hessian_KK.clone()
    first, second = (solve(weight_NK, hessian_KK, ASYMMETRIC, 32, half) for _ in range(2))
    assert torch.equal(weight_NK, copies[0])
    assert torch.equal(hessian_KK, copies[1])
    for name in ("weight_NK", "scale_NG", "zero_NG"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_scales_are_asked_for_as_columns_and_progress_is_told():
    shapes, told = set(), []

    def representable(largest_NG, scale_NG):
        shapes.update((tuple(scale_NG.shape), tuple(largest_NG.shape)))
        return half(None, scale_NG)

    solve(torch.randn(4, 80), torch.eye(80), SYMMETRIC, 32, representable, advance=lambda *done: told.append(done))
    assert shapes == {(4, 1)}
    assert told == [(32, 80), (64, 80), (80, 80)]


def test_groups_of_a_span_are_told_its_largest_weight():
    weight_NK, told = torch.randn(4, 80), []

    def representable(largest_N1, scale_N1):
        told.append(largest_N1[:, 0].clone())
        return half(None, scale_N1)

    grid = Grid(lowest=-8, highest=7, symmetric=True, span=32)
    solve(weight_NK, torch.eye(80), grid, 16, representable)  # no correlation: weights stay as they are
    assert {tuple(each.tolist()) for each in told} == {
        tuple(span_NK.abs().amax(dim=1).tolist()) for span_NK in weight_NK.split(32, dim=1)
    }


@pytest.mark.parametrize("format", [format for format in FORMATS.values() if format.quantized], ids=str)
@pytest.mark.parametrize("depth", [30, 256, 700])
def test_the_answer_is_stored_exactly(format, depth):
    weight_NK = torch.randn(70, depth) * torch.randn(70, depth).exp()
    weight_NK[3, :40], weight_NK[5] = 0.0, 0.0
    grid = grid_of(format)
    solution = solve(weight_NK, gram(correlated(400, depth)), grid, format.group, storable(format))
    scales = Scales(solution.scale_NG, solution.zero_NG if format.asymmetric else None)
    assert torch.equal(unpack(pack(solution.weight_NK, None, format, None, scales)), solution.weight_NK)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad):
    weight_NK, hessian_KK = torch.randn(4, 8), torch.eye(8)
    weight_NK[2, 3] = bad
    with pytest.raises(ValueError, match="weight_NK"):
        solve(weight_NK, hessian_KK, SYMMETRIC, 0, half)
    hessian_KK[1, 1] = bad
    with pytest.raises(ValueError, match="hessian_KK"):
        solve(torch.randn(4, 8), hessian_KK, SYMMETRIC, 0, half)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("weight_NK", {"weight_NK": torch.ones(8)}),
        ("weight_NK", {"weight_NK": torch.ones(0, 8)}),
        ("hessian_KK", {"hessian_KK": torch.eye(7)}),
        ("group_size", {"group_size": -1}),
        ("damping", {"damping": 0.0}),
        ("damping", {"damping": float("nan")}),
    ],
)
def test_arguments_out_of_range_are_refused(name, arguments):
    good = {"weight_NK": torch.ones(4, 8), "hessian_KK": torch.eye(8), "grid": SYMMETRIC, "group_size": 0}
    with pytest.raises(ValueError, match=name):
        solve(**{**good, "representable": half, **arguments})


@pytest.mark.parametrize("depth", [48, 1040])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_hessian_sums_finite_rows(depth, dtype):
    x_MK = torch.randn(20, depth).to(dtype)
    x_MK[3, 5], x_MK[7, 0], x_MK[9, 1] = float("nan"), float("inf"), float("-inf")
    hessian = Hessian(depth)
    hessian.add(x_MK[:12])
    hessian.add(x_MK[12:])
    hessian.add(x_MK[:0])
    kept_MK = x_MK[[row for row in range(20) if row not in (3, 7, 9)]].double()
    assert hessian.rows == 17
    assert hessian.matrix_KK.dtype == (torch.float64 if depth == 48 else torch.float32)
    torch.testing.assert_close(hessian.matrix_KK.double(), kept_MK.T @ kept_MK, rtol=1e-5, atol=1e-4)


def test_hessian_skips_rows_whose_squares_overflow():
    hessian = Hessian(1040)
    hessian.add(torch.full((1, 1040), 1e20))
    assert hessian.rows == 0
    assert (hessian.matrix_KK == 0).all()


def test_hessian_refuses_other_depths():
    with pytest.raises(ValueError, match="x_MK"):
        Hessian(8).add(torch.ones(2, 9))
    with pytest.raises(ValueError, match="x_MK"):
        Hessian(8).add(torch.ones(2, 3, 8))
