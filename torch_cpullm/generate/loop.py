"""The decode loop for the plain cases of greedy search and sampling; transformers' own takes all others.

Theirs grows ids, mask and positions by concatenation, makes the inputs of each step anew and looks for the largest
logit in 0.2 to 0.6 ms at 128 k words. This one writes into rows that were made once, and asks the model for the same
forward, the processors and the criteria for the same decisions: the tokens are theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationMixin

from torch_cpullm.generate.candidates import SharedChoice
from torch_cpullm.generate.choice import Choice
from torch_cpullm.generate.rows import Rows
from torch_cpullm.generate.sampler import FusedSampler
from torch_cpullm.generate.steps import PASSED_ON, Steps
from torch_cpullm.kv import PagedCache

_KNOWN = PASSED_ON | {"past_key_values", "attention_mask", "position_ids"}
_THEIRS = ("_sample", "_prefill", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation")


def is_plain(model: Any, config: Any, synced_gpus: bool, kwargs: dict[str, Any]) -> bool:
    """Whether `decode` does what transformers' loop would.

    Args:
        model: of a class in front of the user's own.
        config: the generation's.
        synced_gpus: as `_sample` is told.
        kwargs: the model's, as `_sample` is told.
    """
    original = type(model).__mro__[2]
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    return (
        all(getattr(original, name) is getattr(GenerationMixin, name) for name in _THEIRS)
        and not (synced_gpus or config.return_dict_in_generate or config.is_assistant)
        and not (config.output_attentions or config.output_hidden_states)
        and isinstance(kwargs.get("past_key_values"), PagedCache)
        and kwargs.get("use_cache") is True
        and all(name in _KNOWN or value is None for name, value in kwargs.items())
        and (mask is None or mask.dim() == 2)
        and (positions is None or positions.dim() == 2)
    )


def _choice(model: Any, choice: Choice) -> Choice | SharedChoice:
    """`choice` itself, or what ranks make of it together."""
    if model._cpullm_ranks is None:
        return choice
    return SharedChoice(choice, model._cpullm_ranks, getattr(model.get_output_embeddings(), "gathering", None))


def decode(  # noqa: PLR0913  (what `_sample` is told, and a sampler)
    model: Any,
    ids_BT: torch.Tensor,
    processors: Any,
    criteria: Any,
    config: Any,
    streamer: Any,
    kwargs: dict[str, Any],
    sampler: FusedSampler | None = None,
) -> torch.Tensor:
    """Generate until the criteria say so; `is_plain` must hold.

    Args:
        model: that generates.
        ids_BT: the prompt, with what its cache holds already.
        processors: of logits, a LogitsProcessorList.
        criteria: a StoppingCriteriaList.
        config: the generation's.
        streamer: told each token, or None.
        kwargs: the model's.
        sampler: draws in place of `processors`, which it was made of; None: transformers' way.

    Returns:
        The prompt and what follows it, [B, n].
    """
    pads = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
    choice = _choice(model, Choice(processors, config.do_sample, sampler))
    outputs = model._prefill(ids_BT, config, kwargs, is_first_iteration=True)
    logits_BV = outputs.logits[:, -1].clone()
    ids = Rows(ids_BT, criteria.max_length)
    steps = Steps(model, kwargs, criteria.max_length, apart=choice.apart)
    unfinished_B = torch.ones(len(ids_BT), dtype=torch.long)
    del outputs  # its logits may be those of a whole prompt
    while True:
        token_B = choice.tokens(ids.value, logits_BV)
        if pads:
            token_B = token_B * unfinished_B + config._pad_token_tensor * (1 - unfinished_B)
        ids.append(token_B)
        unfinished_B = unfinished_B & ~criteria(ids.value, None)
        if streamer is not None:
            streamer.put(token_B)
        if not unfinished_B.any():
            break
        logits_BV = steps.logits(token_B)[:, -1]
    if streamer is not None:
        streamer.end()
    return ids.value.clone()
