"""What the ranks of test_replicated.py do: each has all of a model that nothing is fused of, and they generate."""

import copy
import warnings

import torch
from transformers import LogitsProcessor

import torch_cpullm
from tests.distributed.model_ranks import KEPT, Heard, Made, Opinion, disagreement, world_of
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.testing.models import LEFT_ALONE, tiny_model

FAMILIES = ("opt", "bloom", "gpt2", "falcon, alibi", "granite")
"""Families that nothing is fused of: every rank has and computes all of the model, with transformers' own cache."""


class Taste(LogitsProcessor):
    """Likes other words on each rank."""

    def __init__(self, rank):
        self.rank = rank

    def __call__(self, input_ids, scores):
        return scores + 9.0 * torch.eye(scores.shape[1])[3 + self.rank]


def tokens_of(model, rank=0):
    """Tokens by the ways that ranks may part on, though each has all logits."""
    ids_BT = torch.arange(3, 27).view(2, 12)
    how = {"attention_mask": torch.ones_like(ids_BT), "max_new_tokens": 12, "pad_token_id": 0, "do_sample": True}
    ways = {
        "sampling": {"top_k": 0},
        "sampling, top_k": {"top_k": 20, "temperature": 0.8},
        "sampling, beams": {"num_beams": 2},
        "greedy": {"do_sample": False},
        "another taste": {"logits_processor": [Taste(rank)]},
        "another opinion": {"stopping_criteria": [Opinion(15 + rank)]},
    }
    found = {}
    for name, choices in ways.items():
        torch.manual_seed(11 + rank)
        found[name] = model.generate(ids_BT, **{**how, **choices})
    return found


def everything(rank, size, store, folder):
    """Models without our cache: tokens, also of a copy and of one that was saved; what restore leaves."""
    found = {}
    with world_of(rank, size, store, "shm"):
        for name in FAMILIES:
            model = torch_cpullm.optimize(tiny_model(*LEFT_ALONE[name]), **KEPT)
            found[name] = tokens_of(model, rank)
        ids_BT, heard = torch.arange(3, 27).view(2, 12), Heard()
        model = torch_cpullm.optimize(tiny_model(*LEFT_ALONE["opt"]))
        found["quantised"] = tokens_of(model, rank)
        found["copied"] = tokens_of(copy.deepcopy(model), rank)
        place = f"{folder}/{rank}"
        torch_cpullm.save(model, place)
        with Made() as made:
            model = torch_cpullm.load(place, copy=True)
        found["made"] = (made.bytes, sum(m.packed.numel() for m in model.modules() if isinstance(m, PackedLinear)))
        found["saved"] = tokens_of(model, rank)
        model.generate(ids_BT[:1], max_new_tokens=4, min_new_tokens=4, streamer=heard)
        found["heard"] = (heard.count, heard.ends)
        found["prompts"] = disagreement(lambda: model.generate(ids_BT + rank, max_new_tokens=4))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weights come back rounded, which a warning says
            torch_cpullm.restore(model)
        found["left"] = [name for name in vars(model) if name.startswith("_cpullm")]
        found["class"] = type(model).__mro__[1].__name__
    return found
