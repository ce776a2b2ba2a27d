"""What the ranks of test_same_bits.py do: they compute the same on other instructions, threads and codes."""

import os

import torch

import torch_cpullm
from tests.distributed.model_ranks import batch, prompt, world_of
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.ops import introspect
from torch_cpullm.testing.models import WHOLE, bundled_model, bundled_tokenizer, tiny_model

CHOICES = {
    "keep": {"weights": "keep", "kv_cache": "keep"},
    "int8": {},
    "int4": {"weights": "int4"},
    "bf16": {"weights": "bf16"},
}
TEXTS = ["def read(path):\n    with open(path) as file:\n        return file.read()\n" * 40]
# Two ranks cut it at multiples of 256 inputs, between which "int4" keeps its scales.
WIDE = {**WHOLE["llama"][1], "hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 8, "vocab_size": 8192}


def results_of(model):
    with torch.no_grad():
        logits = model(**batch()).logits
    return {"tokens": model.generate(**prompt(), do_sample=False, max_new_tokens=24), "logits": logits}


def calibrated_by(choices):
    """The bundled model, or the wide one for "int4", with codes chosen on texts."""
    model = tiny_model("LlamaConfig", WIDE) if choices.get("weights") == "int4" else bundled_model()
    texts = {"calibration": TEXTS, "tokenizer": bundled_tokenizer()}
    return torch_cpullm.optimize(model, **choices, **texts, kv_cache="keep")


def as_told(rank, size, store, levels, threads):
    """Logits and tokens of each format, by instructions and threads of the rank's own."""
    if levels:
        os.environ["TORCH_CPULLM_ISA"] = levels[rank]
    with world_of(rank, size, store, "shm"):
        if threads:
            torch.set_num_threads(threads[rank])
        found = {name: results_of(torch_cpullm.optimize(bundled_model(), **how)) for name, how in CHOICES.items()}
    return found | {"level": introspect.isa_level(), "threads": torch.get_num_threads()}


def calibrated(rank, size, store, choices):
    """What comes of calibration on ranks, with the packed bytes of each weight and what part of it they are."""
    with world_of(rank, size, store, "shm"):
        model = calibrated_by(choices)
        parts = {
            path: (module.packed, spans_of(module.part))
            for path, module in model.named_modules()
            if isinstance(module, PackedLinear)
        }
        return {"parts": parts, **results_of(model), "notes": list(torch_cpullm.explain(model).notes)}


def spans_of(part):
    """What `slice_packed` takes besides the whole; None for a whole weight."""
    if part is None:
        return None
    rows = [[span.first, span.stop] for span in part.rows]
    return [rows, [part.inputs.first, part.inputs.stop], part.bias]
