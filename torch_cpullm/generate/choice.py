"""Picks the next token of each sequence: greedy, drawn as transformers draws, or by the fused sampler."""

from __future__ import annotations

from typing import Any

import torch

from torch_cpullm.generate.sampler import FusedSampler

_CHUNK = 256  # sixteen vectors of sixteen floats
_SMALL_CHUNK = 64


def largest(scores_BV: torch.Tensor) -> torch.Tensor:
    """The first of the largest scores of each row, as torch.argmax has it: [B].

    By the largest of each chunk of 256, which vectors find: 25 us at 128 k words instead of 160 (one thread).
    """
    batch, words = scores_BV.shape
    chunks, rest = divmod(words, _CHUNK)
    if chunks < 2:
        return scores_BV.argmax(dim=-1)
    whole_BNC = scores_BV[:, : chunks * _CHUNK].reshape(batch, chunks, _CHUNK)
    top_B1 = whole_BNC.amax(dim=-1).argmax(dim=-1, keepdim=True)
    chunk_BC = whole_BNC.gather(1, top_B1[:, :, None].expand(-1, -1, _CHUNK))[:, 0]
    index_B = top_B1[:, 0] * _CHUNK + chunk_BC.argmax(dim=-1)
    if rest:
        last_BR = scores_BV[:, chunks * _CHUNK :]
        found_B = last_BR.argmax(dim=-1)
        pair_B2 = torch.stack([index_B, found_B + chunks * _CHUNK], dim=1)
        index_B = pair_B2.gather(1, scores_BV.gather(1, pair_B2).argmax(dim=-1, keepdim=True))[:, 0]
    return index_B


def several_largest(scores_BV: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest scores of each row, descending, and their indices, as torch.topk has them: [B, count].

    They lie in the `count` chunks with the largest maxima, or behind all whole chunks: half of torch's time at 64 k
    words. Which of equal scores are left out is anybody's choice, here as there.
    """
    batch, words = scores_BV.shape
    chunks = words // _SMALL_CHUNK
    if chunks <= count:
        values, indices = scores_BV.topk(count)
        return values, indices
    end, whole = chunks * _SMALL_CHUNK, count * _SMALL_CHUNK
    chunks_BNC = scores_BV[:, :end].reshape(batch, chunks, _SMALL_CHUNK)
    chunk_BN = chunks_BNC.amax(dim=-1).topk(count).indices
    found_BM = chunks_BNC.gather(1, chunk_BN[:, :, None].expand(-1, -1, _SMALL_CHUNK)).flatten(1)
    if end == words:
        values, at = found_BM.topk(count)
        return values, _in_chunks(at, chunk_BN)
    values, at = torch.cat([found_BM, scores_BV[:, end:]], dim=1).topk(count)
    return values, torch.where(at < whole, _in_chunks(at.clamp(max=whole - 1), chunk_BN), at - whole + end)


def _in_chunks(at: torch.Tensor, chunk_BN: torch.Tensor) -> torch.Tensor:
    """Indices of scores, given where they are among those of some chunks."""
    return chunk_BN.gather(1, at // _SMALL_CHUNK) * _SMALL_CHUNK + at % _SMALL_CHUNK


class Choice:
    """What generate() was asked for.

    Attributes:
        processors: of logits, a LogitsProcessorList.
        samples: whether tokens are drawn.
        apart: whether logits may stay where they were computed; they are all here.
    """

    def __init__(self, processors: Any, samples: bool, sampler: FusedSampler | None) -> None:
        """`sampler` draws in place of `processors`, which it was made of; None: transformers' way."""
        self.processors, self.samples = processors, samples
        self.apart = False
        self._sampler = sampler

    @property
    def draws_by_order(self) -> bool:
        """Whether leaving out words that top_k leaves out draws the same one of the others, in their order."""
        return self._sampler is not None

    def tokens(self, ids_BT: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        """One for each row, int64 [B], given the tokens so far."""
        if self._sampler is not None:
            return self._sampler.draw(ids_BT, logits_BV)
        scores_BV: torch.Tensor = self.processors(ids_BT, logits_BV.float())
        if self.samples:
            return torch.multinomial(scores_BV.softmax(dim=-1), num_samples=1).squeeze(1)
        return largest(scores_BV)
