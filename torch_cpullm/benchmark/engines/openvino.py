"""OpenVINO's CPU plugin, run as openvino_genai's pipelines run it by default: paged attention, the cache in u8.

Driven without openvino_genai, which takes prompts, not contexts that are cut back. Its LLMPipeline on optimum-intel's
export finds the same tokens at the same speed: Llama-3.2-1B, INT4, one thread of a Xeon with AMX, 343 tokens/s of
prefill against 351 here, 111 ms a token in both. Attention on the graph's own state, which it offers too, is no
substitute: a prompt of 504 tokens behind 7688 others takes 7 times as long.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from torch_cpullm.benchmark.engines.engine import Engine, Format, MissingEngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from openvino import Model

    from torch_cpullm.benchmark.engines.engine import Ids


class OpenVino(Engine):
    """A request of a compiled model and the pages of its cache, laid out sequence by sequence."""

    formats = (Format("BF16", 16), Format("INT8", 8), Format("INT4", 4))
    kv_bits = 8

    @classmethod
    def prepare(cls, checkpoint: Path, format: str) -> Path:
        """Write the folder that optimum-intel would: openvino_model.xml and .bin."""
        try:
            from torch_cpullm.benchmark.engines.openvino_graph import write
        except ImportError as error:
            raise MissingEngineError("openvino is not installed: pip install openvino") from error
        prepared = checkpoint.with_name(f"{checkpoint.name}-openvino-{format.lower()}")
        if not prepared.is_dir():
            with TemporaryDirectory(dir=checkpoint.parent) as scratch:
                whole = Path(scratch) / prepared.name
                whole.mkdir()
                write(checkpoint, format, whole)
                whole.rename(prepared)
        return prepared

    def __init__(self, prepared: Path, format: str, threads: int, batch: int, context: int) -> None:
        import openvino
        from openvino._offline_transformations import paged_attention_transformation

        self.weight_bytes = (prepared / "openvino_model.bin").stat().st_size
        core = openvino.Core()
        model = core.read_model(prepared / "openvino_model.xml")
        paged_attention_transformation(model)
        _keep_sampled(model)
        # All else by default: bf16 arithmetic where the CPU has it, a cache of u8.
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        compiled = core.compile_model(model, "CPU", settings)
        self._request = compiled.create_infer_request()
        self._page = compiled.input("value_cache.0").partial_shape[2].get_length()  # pages, heads, tokens, channels
        self._sequences, self._pages = batch, -(-context // self._page)
        for cache in compiled.inputs:
            if cache.any_name.startswith(("key_cache.", "value_cache.")):
                shape = [batch * self._pages, *(size.get_length() for size in list(cache.partial_shape)[1:])]
                self._request.set_tensor(cache, openvino.Tensor(cache.element_type, shape))
        self.reset(batch)

    @property
    def length(self) -> int:
        """Tokens that each sequence holds."""
        return self._length

    def reset(self, batch: int) -> None:
        """Forget by count: pages are written before they are read."""
        self._length = 0

    def extend(self, ids_BT: Ids) -> Ids:
        """Run all the prompts in one go, as LLMPipeline does."""
        self._next_B = self._advance(ids_BT)
        return self._next_B

    def decode(self, tokens: int) -> tuple[list[float], Ids]:
        """One run of the model for each token of all the sequences."""
        times, found = [], []
        for _ in range(tokens):
            self._next_B = self._advance(self._next_B[:, None])
            times.append(time.perf_counter())
            found.append(self._next_B)
        return times, np.stack(found, axis=1)

    def crop(self, length: int) -> None:
        """Forget by count, as openvino_genai's scheduler does."""
        self._length = length

    def _advance(self, ids_BT: Ids) -> Ids:
        B, T = ids_BT.shape
        past, length = self._length, self._length + T
        pages = -(-length // self._page)
        if pages > self._pages or self._sequences < B:  # the plugin would write past the end of its tensors
            most = self._pages * self._page
            raise ValueError(f"ids_BT: {B} sequences would hold {length} tokens; {self._sequences} of {most} fit")
        table = np.arange(B)[:, None] * self._pages + np.arange(pages)
        inputs = {
            "input_ids": ids_BT.reshape(-1),
            "position_ids": np.tile(np.arange(past, length), B),
            "past_lens": _i32(np.full(B, past)),
            "subsequence_begins": _i32(np.arange(B + 1) * T),
            "block_indices": _i32(table.reshape(-1)),
            "block_indices_begins": _i32(np.arange(B + 1) * pages),
            "max_context_len": _i32(np.array(length)),
            "sampled": np.arange(1, B + 1) * T - 1,
        }
        self._request.infer(inputs, share_inputs=True)
        self._length = length
        tokens_B: Ids = self._request.get_output_tensor().data.reshape(B, -1).argmax(-1)
        return tokens_B


def _keep_sampled(model: Model) -> None:
    """Have the head see the last token of each prompt only, as openvino_genai does with its own transformation."""
    from openvino import Type, opset13

    head = model.output("logits").node
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).node
    sampled = opset13.parameter([-1], Type.i64)
    sampled.output(0).set_names({"sampled"})
    head.input(0).replace_source_output(opset13.gather(head.input_value(0), sampled, 0).output(0))
    model.add_parameters([sampled])
    model.validate_nodes_and_infer_types()


def _i32(values: NDArray[np.int64]) -> NDArray[np.int32]:
    return values.astype(np.int32)
