"""Transformers' sampling processors as one operator: recognised, their numbers read, and a token drawn for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from torch_cpullm.ops.sample import Filters, sample

if TYPE_CHECKING:
    from collections.abc import Iterable

_KNOWN: dict[type[LogitsProcessor], tuple[str, str]] = {
    RepetitionPenaltyLogitsProcessor: ("repetition_penalty", "penalty"),
    TemperatureLogitsWarper: ("temperature", "temperature"),
    TopKLogitsWarper: ("top_k", "top_k"),
    TopPLogitsWarper: ("top_p", "top_p"),
    MinPLogitsWarper: ("min_p", "min_p"),
}
"""In the order in which generate() lists them and the operator applies them: our name of their number, and theirs."""


class FusedSampler:
    """Draws what transformers' processors, softmax and multinomial would draw from, in one operator.

    Attributes:
        filters: the numbers of the processors.
    """

    def __init__(self, filters: Filters) -> None:
        self.filters = filters
        # One number of torch's own generator: torch.manual_seed makes all draws reproducible.
        self._generator = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))

    def __repr__(self) -> str:
        return f"FusedSampler({self.filters})"

    @classmethod
    def of(cls, processors: Iterable[Any]) -> FusedSampler | None:
        """The sampler that stands for `processors` (a LogitsProcessorList), None where it holds anything else.

        Each must be of exactly its class, as a subclass may do what it likes, at most once, and in transformers' order;
        filters keep at least one token and write -inf, and the penalty sees the whole sequence.
        """
        numbers: dict[str, Any] = {}
        expected = list(_KNOWN)
        for processor in processors:
            kind = type(processor)
            if kind not in expected or not _is_plain(processor):
                return None
            expected = expected[expected.index(kind) + 1 :]
            ours, theirs = _KNOWN[kind]
            numbers[ours] = getattr(processor, theirs)
        return cls(Filters(**numbers))

    def draw(self, input_ids_BS: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        """One token a row, int64 [B], of logits float32, bfloat16 or float16, given the tokens so far.

        Raises:
            ValueError: a row with NaN or +inf, or with nothing but -inf.
            IndexError: with a repetition penalty, a token so far that the logits do not have.
        """
        uniform_B = torch.rand(len(logits_BV), dtype=torch.float64, generator=self._generator)
        ids_BS = None if self.filters.repetition_penalty == 1.0 else _with_logits(input_ids_BS, logits_BV.shape[1])
        return sample(logits_BV, ids_BS, uniform_B, self.filters)


def _with_logits(ids_BS: torch.Tensor, words: int) -> torch.Tensor:
    """The tokens that have logits: a table of embeddings may be longer than the head (images, padding).

    Others are replaced by one of the same row, which is penalised once however often it comes.
    """
    if int(ids_BS.max()) < words:
        return ids_BS
    return torch.where(ids_BS < words, ids_BS, ids_BS.amin(dim=1, keepdim=True))


def _is_plain(processor: LogitsProcessor) -> bool:
    """Whether a processor of a known class does nothing that the operator does not."""
    if isinstance(processor, RepetitionPenaltyLogitsProcessor):
        # logits_indices: continuous batching, where one call holds the rows of several requests.
        return processor.prompt_ignore_length is None and getattr(processor, "logits_indices", None) is None
    if isinstance(processor, TopKLogitsWarper | TopPLogitsWarper | MinPLogitsWarper):
        return bool(processor.min_tokens_to_keep == 1 and processor.filter_value == float("-inf"))
    return True
