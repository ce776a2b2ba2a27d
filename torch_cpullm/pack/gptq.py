"""Rounding a weight so that its layer's output suffers least: GPTQ (arXiv 2210.17323, sections 3.2 and 3.3).

With the error E = W - Q and H = sum x x^T, rounding adds tr(E H E^T) to the output's squared error. Factor
H = (I + S) D (I + S)^T, S strictly upper triangular, D diagonal. Column c of E (I + S) is

    t_c - q_c    where    t_c = w_c + sum over j < c of (w_j - q_j) S_jc

and the loss is the sum of D_c |t_c - q_c|^2: with columns taken from left to right, the best q_c is the value of the
grid nearest to t_c. The paper has the same step with U = D^-1/2 (I + S)^-1, where H^-1 = U^T U, and pushes each error
ahead; here errors are pulled from behind (LDLQ, which arXiv 2307.13304 shows to be equal). That needs no inverse: a
quarter of the operations before the solve, and one rounding of H where there were three.

Columns keep their order. Large diagonals first (the "act-order" of later code) would scatter every group over the whole
solve, so that its scale is chosen before its weights are known, or make every product gather its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

# Columns between two matrix products, the paper's B: inside, a column reads half a block of errors, N x 64 floats (512
# KiB at N = 2048: a level-2 cache). 128, 256 and 512 were equally fast at K = 8192, N = 2048.
_BLOCK = 128
# Up to here float64 costs little: 8 MiB (1024), a factorisation of about a second (4096). Above, float32 suffices,
# by the damping: the condition number is at most K / damping + 1, 8e5 at K = 8192 and 1 %, and float32 resolves 1.6e7.
_DOUBLE_SUM = 1024
_DOUBLE_FACTOR = 4096
# Scales tried, relative to the one that just reaches a group's largest value. A normal row of 8192 clips best at 0.7 of
# it, one with outliers lower. Above 1, because late columns of a group still move: stopping at 1 added 1 to 2 % to the
# output's error in groups of 32, and steps of 0.05 up to 1 % (int4, bundled model).
_FACTORS = tuple(1.15 - 0.025 * step for step in range(27))


@dataclass(frozen=True)
class Grid:
    """The grid a group of weights is rounded to: value = (code - zero) * scale, code in lowest..highest."""

    lowest: int  # -8 symmetric, 0 asymmetric (int4); -127 (int8)
    highest: int  # 7 symmetric, 15 asymmetric (int4); 127 (int8)
    symmetric: bool  # symmetric grids have zero 0
    span: int = 0  # columns, whole groups, whose scales must fit one another to be stored; 0: each group for itself


# From the largest magnitude [N, 1] of the weights in a span as the solve reaches it, and scales [N, 1] of one of its
# groups, to scales that can be stored. The magnitude is the same for all groups of a span: they can be fitted by it.
Representable = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Solution:
    """A rounded weight. A group of zeros has scale 0; symmetric scales may be negative, asymmetric ones are not."""

    weight_NK: torch.Tensor  # float32, every value on its group's grid
    scale_NG: torch.Tensor  # float32
    zero_NG: torch.Tensor  # float32, integral, in lowest..highest


class Hessian:
    """H = sum x x^T over the rows that reach one input of `depth` features: matrix_KK, float64 up to K = 1024."""

    def __init__(self, depth: int) -> None:
        dtype = torch.float64 if depth <= _DOUBLE_SUM else torch.float32
        self.matrix_KK = torch.zeros(depth, depth, dtype=dtype)
        self._rows = 0

    @property
    def rows(self) -> int:
        """Rows summed so far, without those skipped."""
        return self._rows

    @torch.no_grad()
    def add(self, x_MK: torch.Tensor) -> None:
        """Add rows [M, K] of any float dtype. A row that is not finite, or whose square is not, is skipped.

        Raises ValueError where x_MK is not [M, K].
        """
        depth = self.matrix_KK.shape[0]
        if x_MK.dim() != 2 or x_MK.shape[1] != depth:
            raise ValueError(f"x_MK: expected [rows, {depth}], got {list(x_MK.shape)}")
        rows_MK = x_MK.to(self.matrix_KK.dtype)
        rows_MK = rows_MK[rows_MK.square().sum(dim=1).isfinite()]
        self.matrix_KK.addmm_(rows_MK.T, rows_MK)
        self._rows += rows_MK.shape[0]


@torch.no_grad()
def solve(
    weight_NK: torch.Tensor,
    hessian_KK: torch.Tensor,
    grid: Grid,
    group_size: int,
    representable: Representable,
    damping: float = 0.01,
    advance: Callable[[int, int], None] | None = None,
) -> Solution:
    """Round a weight [N, K] of any float dtype to `grid`, for inputs whose sum of x x^T is hessian_KK [K, K].

    G = ceil(K / group_size) groups of columns, the last perhaps short; group_size 0 makes the row one group. A group's
    scales are chosen when the solve reaches it, from weights that carry all earlier errors (with group_size 0, from the
    weights as they came). `representable` rounds float32 scales to those the packed format can store. `advance(columns
    done, K)` is called after each group.

    `damping`, relative to the mean of H's diagonal, is added to the diagonal. Where H cannot be factored even so, it is
    raised tenfold, up to 1; after that, and where H is zero, every weight is rounded to nearest, with scales chosen in
    the same way for equal D. Inputs that were always zero neither give nor take errors.

    Raises ValueError where a shape, group_size or damping is out of range, or weight_NK or hessian_KK is not finite.
    """
    _check(weight_NK, hessian_KK, group_size, damping)
    depth = weight_NK.shape[1]
    feedback_KK, curvature_K = _factor(hessian_KK, damping)
    weight_KN = weight_NK.float().T.contiguous()  # a step reads and writes whole columns
    rounded_KN, error_KN = torch.empty_like(weight_KN), torch.empty_like(weight_KN)
    scales, zeros = [], []
    width = group_size or depth
    for first in range(0, depth, grid.span or width):
        end = min(first + (grid.span or width), depth)
        span_KN = weight_KN[first:end] + feedback_KK[:first, first:end].T @ error_KN[:first]
        largest_N1 = span_KN.abs().amax(dim=0)[:, None]
        for start in range(first, end, width):
            stop = min(start + width, end)
            group_KN = span_KN[start - first : stop - first]
            group_KN += feedback_KK[first:start, start:stop].T @ error_KN[first:start]
            scale_N, zero_N = _choose(group_KN, curvature_K[start:stop], grid, partial(representable, largest_N1))
            for left in range(start, stop, _BLOCK):
                right = min(left + _BLOCK, stop)
                group_KN[left - start : right - start] += feedback_KK[start:left, left:right].T @ error_KN[start:left]
                for column in range(left, right):
                    target_N = group_KN[column - start] + feedback_KK[left:column, column] @ error_KN[left:column]
                    rounded_KN[column] = _nearest(target_N, scale_N, zero_N, grid)
                    error_KN[column] = weight_KN[column] - rounded_KN[column]
            scales.append(scale_N)
            zeros.append(zero_N)
            if advance is not None:
                advance(stop, depth)
    return Solution(rounded_KN.T.contiguous(), torch.stack(scales, dim=1), torch.stack(zeros, dim=1))


def _check(weight_NK: torch.Tensor, hessian_KK: torch.Tensor, group_size: int, damping: float) -> None:
    if weight_NK.dim() != 2 or weight_NK.numel() == 0:
        raise ValueError(f"weight_NK: expected a matrix [N, K] that is not empty, got {list(weight_NK.shape)}")
    depth = weight_NK.shape[1]
    if hessian_KK.shape != (depth, depth):
        raise ValueError(f"hessian_KK: expected [{depth}, {depth}], got {list(hessian_KK.shape)}")
    if group_size < 0:
        raise ValueError(f"group_size: expected 0 (one group per row) or more, got {group_size}")
    if not 0.0 < damping <= 1.0:
        raise ValueError(f"damping: expected a number above 0 and up to 1, got {damping}")
    if not weight_NK.isfinite().all():
        raise ValueError("weight_NK: expected finite values, got NaN or Inf")
    if not hessian_KK.isfinite().all():
        raise ValueError("hessian_KK: expected finite values, got NaN or Inf")


def _factor(hessian_KK: torch.Tensor, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """S float32 [K, K], and D float32 [K] relative to the mean of H's diagonal, so that float32 holds it."""
    depth = hessian_KK.shape[0]
    # Cholesky's L L^T has its triangle on the other side. With both axes of H reversed, and those of L reversed back,
    # it is R R^T where R = (I + S) D^1/2 is upper triangular.
    reversed_KK = hessian_KK.to(torch.float64 if depth <= _DOUBLE_FACTOR else torch.float32).flip(0, 1)
    diagonal_K = reversed_KK.diagonal().clone()
    mean = float(diagonal_K.mean())
    dead_K = diagonal_K == 0
    reversed_KK[dead_K] = 0.0  # as they are, except where the squares of tiny x underflowed and their products did not
    reversed_KK[:, dead_K] = 0.0
    while 0.0 < mean < float("inf") and damping <= 1.0:
        reversed_KK.diagonal().copy_(diagonal_K + damping * mean)
        lower_KK, failed = torch.linalg.cholesky_ex(reversed_KK)
        if not failed:
            del reversed_KK  # 3.3 GB at K = 28672
            upper_KK = lower_KK.flip(0, 1)
            pivot_K = upper_KK.diagonal().clone()
            upper_KK.div_(pivot_K).diagonal().zero_()
            return upper_KK.float(), (pivot_K.square() / mean).float()
        damping *= 10.0
    return torch.zeros(depth, depth), torch.ones(depth)


def _choose(
    group_KN: torch.Tensor, curvature_K: torch.Tensor, grid: Grid, fitting: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and zero, float32 [N], with the least loss when the columns of a group are rounded by themselves.

    A column's error counts D times, as in the loss above. Over the layers of the bundled model (int4; groups of 32, 128
    and the row; text not calibrated on) the outputs' error is 1 to 4 % smaller than with equal weights, and 1 % smaller
    than with H's diagonal, which also counts what later columns will repair.
    """
    best_N = curvature_K @ group_KN.square()  # of scale 0, which stays where nothing is better: a group of zeros
    scale_N, zero_N = torch.zeros_like(best_N), torch.zeros_like(best_N)
    for exact_N, low_N in _candidates(group_KN, grid):
        tried_N = fitting(exact_N[:, None])[:, 0].float()
        offset_N = torch.zeros_like(tried_N)
        if not grid.symmetric:
            offset_N = torch.round(grid.lowest - low_N / _divisor(tried_N)).clamp_(grid.lowest, grid.highest)
        loss_N = curvature_K @ _nearest(group_KN, tried_N, offset_N, grid).sub_(group_KN).square_()
        better_N = loss_N < best_N  # false for NaN: a scale that overflowed the format
        best_N = torch.where(better_N, loss_N, best_N)
        scale_N = torch.where(better_N, tried_N, scale_N)
        zero_N = torch.where(better_N, offset_N, zero_N)
    return scale_N, zero_N


def _candidates(group_KN: torch.Tensor, grid: Grid) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Scales [N] to try, each with the value [N] that an asymmetric grid starts at."""
    low_N, high_N = group_KN.amin(dim=0).clamp_(max=0.0), group_KN.amax(dim=0).clamp_(min=0.0)
    for factor in _FACTORS:
        if not grid.symmetric:
            yield (high_N - low_N) * (factor / (grid.highest - grid.lowest)), low_N
            continue
        scale_N = torch.where(-low_N > high_N, low_N, high_N) * (factor / grid.lowest)
        yield scale_N, low_N
        if grid.highest != -grid.lowest:
            yield -scale_N, low_N  # the largest value on the side with a code less: 0.2 to 0.6 % less error


def _nearest(exact: torch.Tensor, scale_N: torch.Tensor, zero_N: torch.Tensor, grid: Grid) -> torch.Tensor:
    code = (exact / _divisor(scale_N)).round_().add_(zero_N).clamp_(grid.lowest, grid.highest)
    return code.sub_(zero_N).mul_(scale_N)


def _divisor(scale_N: torch.Tensor) -> torch.Tensor:
    """With scale 0, x / inf = 0 picks the code of zero; x / 0 would be NaN for x = 0."""
    return torch.where(scale_N == 0, torch.inf, scale_N)
