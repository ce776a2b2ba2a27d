"""`torch-cpullm generate`: one prompt through one model, the answer as it comes, and how fast it came.

The answer goes to stdout, everything else to stderr. Of several ranks (`torch-cpullm launch --sockets 2 generate ...`)
the first one speaks.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import torch
import typer
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TextStreamer
from transformers.utils import logging as transformers_logging

import torch_cpullm
from torch_cpullm.benchmark.steps import step
from torch_cpullm.cli.mistakes import mistakes_in_words
from torch_cpullm.config import QUANT_METHOD, KvCache, Weights
from torch_cpullm.demo.bundled import load_bundled
from torch_cpullm.errors import ConfigError, TorchCpuLlmError
from torch_cpullm.pack import store
from torch_cpullm.pretrained import CpuLlmConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from torch_cpullm.benchmark.causal_lm import CausalLM

DEMO = "demo"


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"folder of a model, or {DEMO}: the bundled one")],
    prompt: Annotated[str, typer.Option(help="the text to continue", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(help="tokens to generate at most", min=1)] = 128,
    weights: Annotated[Weights | None, typer.Option(help="format of the weights (default: int8)")] = None,
    kv_cache: Annotated[KvCache | None, typer.Option(help="format of the KV cache (default: int8)")] = None,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="of what a temperature draws")] = 0,
) -> None:
    """Continue a prompt with a checkpoint of transformers, a folder of torch_cpullm.save(), or the bundled model."""
    transformers_logging.disable_progress_bar()
    with mistakes_in_words():
        speaks = torch_cpullm.distributed.init().rank == 0
        console = Console(stderr=True, quiet=not speaks)
        choices = {name: choice for name, choice in (("weights", weights), ("kv_cache", kv_cache)) if choice}
        with step(console, f"loading {model}"):
            subject, tokenizer = _load(model, choices)
        ids_BT = _ids(subject, tokenizer, prompt, max_new_tokens)
    torch.manual_seed(seed)
    watch = _Watch(tokenizer) if speaks else None
    with torch.inference_mode():
        subject.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            streamer=watch,
            **({"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}),
        )
    if watch:
        console.print(watch.report(), style="dim", highlight=False)


class _Watch(TextStreamer):
    """transformers' TextStreamer, which writes words to stdout as they become final, with a clock."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._begin_s = time.perf_counter()
        self._prompt = 0
        self._seen_s: list[float] = []  # when each new token came

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then one token after the other."""
        if self._prompt:
            self._seen_s.append(time.perf_counter())
        else:
            self._prompt = value.numel()
        super().put(value)  # type: ignore[no-untyped-call]

    def report(self) -> str:
        """One line of speeds. The first token is the prompt's."""
        first_s = self._seen_s[0] - self._begin_s
        line = f"prompt: {self._prompt} tokens in {first_s:.2f} s; answer: {len(self._seen_s)} tokens"
        later_s = self._seen_s[-1] - self._seen_s[0]
        return f"{line}, {(len(self._seen_s) - 1) / later_s:.1f} tokens/s" if later_s else line


def _load(name: str, choices: dict[str, Weights | KvCache]) -> tuple[CausalLM, PreTrainedTokenizerBase]:
    if name == DEMO:
        subject, tokenizer = load_bundled()
        return torch_cpullm.optimize(subject, **choices), tokenizer  # type: ignore[arg-type]
    folder = Path(name)
    if not (folder / store.CONFIG).is_file():
        raise ConfigError(
            f"model: expected a folder with {store.CONFIG}, weights and a tokenizer, found none at '{name}'; "
            f"{DEMO} is the bundled model"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return _load_folder(folder, choices), tokenizer
    except TorchCpuLlmError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"model: transformers loads no causal LM with a tokenizer from '{name}': {reason}") from error


def _load_folder(folder: Path, choices: dict[str, Weights | KvCache]) -> CausalLM:
    """A folder of save(), a packed one of save_pretrained(), or a checkpoint, which is packed while it loads."""
    saved = (folder / store.RECORD).is_file()
    packed = not saved and _is_packed(AutoConfig.from_pretrained(folder, local_files_only=True))
    if choices and (saved or packed):
        raise ConfigError(f"{next(iter(choices))}: expected none for '{folder}', which is packed already; leave it out")
    if saved:
        return cast("CausalLM", torch_cpullm.load(folder))
    # A packed folder brings its own; None in its place would leave the weights at random.
    asked = {} if packed else {"quantization_config": CpuLlmConfig(**choices)}  # type: ignore[arg-type]
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True, **asked)
    return cast("CausalLM", loaded)


def _is_packed(config: PretrainedConfig) -> bool:
    method: object = (getattr(config, "quantization_config", None) or {}).get("quant_method")
    return method == QUANT_METHOD


def _ids(model: CausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int) -> torch.Tensor:
    ids_BT = cast("torch.Tensor", tokenizer(prompt, return_tensors="pt")["input_ids"]).long()
    if not ids_BT.numel():
        raise ConfigError("prompt: expected a text of at least one token, got none")
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and ids_BT.shape[1] + new_tokens > limit:
        raise ConfigError(
            f"prompt: expected at most {limit} tokens with the answer, which is this model's context, got "
            f"{ids_BT.shape[1]} and {new_tokens}; shorten it, or lower --max-new-tokens"
        )
    return ids_BT
