"""The forwards of a decode loop: the model's own, watched once, and the short way from then on where there is one."""

from __future__ import annotations

from typing import Any

import torch

from torch_cpullm.generate.rows import Rows
from torch_cpullm.generate.step import Step, Watch
from torch_cpullm.kv import PagedCache

# What a step's forward is given beside ids, mask, positions and cache; any other argument is left to transformers.
PASSED_ON = frozenset({"use_cache", "logits_to_keep", "output_attentions", "output_hidden_states"})


class Steps:
    """Gives the logits of one token after the other; mask and positions grow by themselves."""

    def __init__(self, model: Any, kwargs: dict[str, Any], longest: int | None, apart: bool = False) -> None:
        """Begin behind a prompt.

        Args:
            model: optimised; its cache holds the prompt.
            kwargs: the model's, as the prompt's forward was given them.
            longest: tokens that the text will have at most, if that is known.
            apart: whether a rank that has some of the words' logits may keep to these.
        """
        self._apart = apart
        self._model = model
        self._cache: PagedCache = kwargs["past_key_values"]
        self._inputs = {name: value for name, value in kwargs.items() if name in PASSED_ON}
        mask_BT, position_BT = kwargs.get("attention_mask"), kwargs.get("position_ids")
        self._mask = None if mask_BT is None else Rows(mask_BT, longest)
        self._position_B1 = None if position_BT is None else position_BT[:, -1:].clone()
        self._watch = Watch.of(model, longest)
        self._step: Step | None = None

    def logits(self, token_B: torch.Tensor) -> torch.Tensor:
        """The logits [B, 1, V] for one more token of each sequence; a rank's own, where they may stay apart."""
        token_B1 = token_B[:, None]
        if self._mask is not None:
            self._mask.append(1)
        mask_BT = None if self._mask is None else self._mask.value
        if self._step is not None:
            return self._step.logits(token_B1, self._cache, mask_BT, self._apart)
        if self._position_B1 is not None:
            self._position_B1 += 1
        if self._watch is None:
            return self._forward(token_B1, mask_BT)
        position_B1 = self._position_B1
        if position_B1 is None:
            position_B1 = torch.full_like(token_B1, self._cache.get_seq_length())
        with self._watch.watching():
            logits_B1V = self._forward(token_B1, mask_BT)
        self._step, self._watch = self._watch.found(token_B1, position_B1, mask_BT, logits_B1V), None
        return logits_B1V

    def _forward(self, token_B1: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
        given = {"attention_mask": mask_BT, "position_ids": self._position_B1}
        given = {name: value for name, value in given.items() if value is not None}
        outputs = self._model(
            input_ids=token_B1, past_key_values=self._cache, **given, **self._inputs, return_dict=True
        )
        logits_B1V: torch.Tensor = outputs.logits
        return logits_B1V
