"""A checkpoint as an OpenVINO graph: the nodes of optimum-intel's export, in the patterns that the CPU plugin fuses.

optimum-intel itself lags behind transformers (2.2 wants one below 5.6), and needs nncf; this needs openvino alone.
The KV cache is state: ReadValue, a Gather for beams, Concat, Assign, ScaledDotProductAttention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import openvino as ov
from openvino import opset13 as op
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from torch_cpullm.benchmark.engines.engine import MissingEngineError
from torch_cpullm.benchmark.engines.openvino_weights import Weights

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

ARCHITECTURES = ("llama", "qwen2", "qwen3")
ROPES = ("default", "linear", "llama3")  # frequencies that no length changes, and no factor on cos and sin
HIDDEN = np.float32(-65504)  # the lowest f16, which optimum-intel's masks hold


def write(checkpoint: Path, format: str, target: Path) -> None:
    """Write a checkpoint as openvino_model.xml and .bin.

    Args:
        checkpoint: as in `Engine.prepare`.
        format: "INT8", "INT4" or "BF16".
        target: a folder to write into.

    Raises:
        MissingEngineError: an architecture that is not here.
    """
    config = AutoConfig.from_pretrained(checkpoint)
    rope = config.rope_parameters["rope_type"] if config.model_type in ARCHITECTURES else ""
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if rope not in ROPES or config.hidden_act != "silu" or sliding:
        known = ", ".join(ARCHITECTURES)
        raise MissingEngineError(f"openvino: no graph for '{config.model_type}' with these settings; there are {known}")
    weights = Weights(checkpoint, format)  # lives until the model is saved: constants point into its memory
    ov.save_model(_Graph(config, weights).model(), target / "openvino_model.xml", compress_to_fp16=False)


@dataclass(frozen=True)
class _Shared:
    """Inputs of every layer: which state each sequence goes on with, and what depends on positions."""

    beam_B: ov.Node
    empty_cache: ov.Node
    cos_B1TC: ov.Node
    sin_B1TC: ov.Node
    mask_B1TS: ov.Node


class _Graph:
    def __init__(self, config: PreTrainedConfig, weights: Weights) -> None:
        self.config, self.weights = config, weights
        self.channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.assigns: list[ov.Node] = []

    def model(self) -> ov.Model:
        inputs = [
            _parameter("input_ids", [-1, -1], ov.Type.i64),
            _parameter("attention_mask", [-1, -1], ov.Type.i64),
            _parameter("position_ids", [-1, -1], ov.Type.i64),
            _parameter("beam_idx", [-1], ov.Type.i32),
        ]
        ids_BT, held_BS, positions_BT, beam_B = inputs
        shared = self._shared(ids_BT, held_BS, positions_BT, beam_B)
        embeddings = self.weights.matrix("model.embed_tokens.weight", coarse=False)
        hidden_BTD = op.gather(embeddings, op.convert(ids_BT, ov.Type.i32), 0)
        for layer in range(self.config.num_hidden_layers):
            hidden_BTD = self._layer(hidden_BTD, f"model.layers.{layer}", shared)
        head = "lm_head.weight" if "lm_head.weight" in self.weights else "model.embed_tokens.weight"
        hidden_BTD = self._norm(hidden_BTD, "model.norm")
        logits_BTV = op.matmul(hidden_BTD, self.weights.matrix(head, coarse=False), False, True)
        logits_BTV.output(0).set_names({"logits"})
        return ov.Model([op.result(logits_BTV)], self.assigns, inputs)

    def _shared(self, ids_BT: ov.Node, held_BS: ov.Node, positions_BT: ov.Node, beam_B: ov.Node) -> _Shared:
        batch = op.gather(op.shape_of(ids_BT), [0], 0)
        cache = op.concat([batch, *([size] for size in (self.config.num_key_value_heads, 0, self.channels))], 0)
        rope = LlamaRotaryEmbedding(self.config)  # type: ignore[arg-type]  # the others' configurations have its fields
        frequencies = rope.inv_freq.numpy()[None, :, None]
        angles_BCT = op.matmul(frequencies, op.convert(op.unsqueeze(positions_BT, 1), ov.Type.f32), False, False)
        angles_BTC = op.transpose(angles_BCT, [0, 2, 1])
        angles_B1TC = op.unsqueeze(op.concat([angles_BTC, angles_BTC], -1), 1)
        held_B11S = op.convert(op.unsqueeze(held_BS, [1, 2]), ov.Type.boolean)
        span_S = op.range(0, op.gather(op.shape_of(held_BS), 1, 0), 1, output_type=ov.Type.i64)
        causal_B1TS = op.less_equal(op.unsqueeze(span_S, [0, 1, 2]), op.unsqueeze(positions_BT, [1, 3]))
        return _Shared(
            beam_B=beam_B,
            empty_cache=op.broadcast(np.float32(0), cache),
            cos_B1TC=op.cos(angles_B1TC),
            sin_B1TC=op.sin(angles_B1TC),
            mask_B1TS=op.select(op.logical_and(causal_B1TS, held_B11S), np.float32(0), HIDDEN),
        )

    def _layer(self, hidden_BTD: ov.Node, name: str, shared: _Shared) -> ov.Node:
        attended_BTD = self._attention(self._norm(hidden_BTD, f"{name}.input_layernorm"), f"{name}.self_attn", shared)
        hidden_BTD = op.add(hidden_BTD, attended_BTD)
        normed_BTD = self._norm(hidden_BTD, f"{name}.post_attention_layernorm")
        gate_BTF = op.swish(self._linear(normed_BTD, f"{name}.mlp.gate_proj"))
        up_BTF = self._linear(normed_BTD, f"{name}.mlp.up_proj")
        return op.add(hidden_BTD, self._linear(op.multiply(gate_BTF, up_BTF), f"{name}.mlp.down_proj"))

    def _attention(self, hidden_BTD: ov.Node, name: str, shared: _Shared) -> ov.Node:
        query_BHTC, key_BGTC = (
            self._rotated(self._heads(hidden_BTD, f"{name}.{letter}"), shared) for letter in ("q", "k")
        )
        value_BGTC = self._heads(hidden_BTD, f"{name}.v")
        key_BHSC, value_BHSC = (
            self._repeated(self._remembered(new, f"{name}.{word}", shared))
            for new, word in ((key_BGTC, "key"), (value_BGTC, "value"))
        )
        mixed_BHTC = op.scaled_dot_product_attention(query_BHTC, key_BHSC, value_BHSC, shared.mask_B1TS)
        width = self.config.num_attention_heads * self.channels
        mixed_BTD = op.reshape(op.transpose(mixed_BHTC, [0, 2, 1, 3]), [0, 0, width], special_zero=True)
        return self._linear(mixed_BTD, f"{name}.o_proj")

    def _heads(self, hidden_BTD: ov.Node, name: str) -> ov.Node:
        heads = op.reshape(self._linear(hidden_BTD, f"{name}_proj"), [0, 0, -1, self.channels], special_zero=True)
        if f"{name}_norm.weight" in self.weights:
            heads = self._norm(heads, f"{name}_norm")
        return op.transpose(heads, [0, 2, 1, 3])

    def _rotated(self, heads: ov.Node, shared: _Shared) -> ov.Node:
        half = self.channels // 2
        first, second = op.slice(heads, [0], [half], [1], [3]), op.slice(heads, [half], [self.channels], [1], [3])
        turned = op.concat([op.multiply(second, np.float32(-1)), first], -1)
        return op.add(op.multiply(heads, shared.cos_B1TC), op.multiply(turned, shared.sin_B1TC))

    def _remembered(self, new_BGTC: ov.Node, name: str, shared: _Shared) -> ov.Node:
        info = ov.op.util.VariableInfo()
        info.data_shape = ov.PartialShape([-1, self.config.num_key_value_heads, -1, self.channels])
        info.data_type, info.variable_id = ov.Type.f32, name
        variable = ov.op.util.Variable(info)
        past_BGSC = op.gather(ov.op.read_value(shared.empty_cache, variable), shared.beam_B, 0)
        all_BGSC = op.concat([past_BGSC, new_BGTC], -2)
        self.assigns.append(ov.op.assign(all_BGSC, variable))
        return all_BGSC

    def _repeated(self, cache_BGSC: ov.Node) -> ov.Node:
        heads, groups = self.config.num_attention_heads, self.config.num_key_value_heads
        if heads == groups:
            return cache_BGSC
        wide = op.broadcast(op.unsqueeze(cache_BGSC, 2), [1, 1, heads // groups, 1, 1], broadcast_spec="BIDIRECTIONAL")
        return op.reshape(wide, [0, heads, -1, self.channels], special_zero=True)

    def _linear(self, hidden: ov.Node, name: str) -> ov.Node:
        product = op.matmul(hidden, self.weights.matrix(f"{name}.weight"), False, True)
        if f"{name}.bias" not in self.weights:
            return product
        return op.add(product, self.weights.vector(f"{name}.bias"))

    def _norm(self, hidden: ov.Node, name: str) -> ov.Node:
        mean_square = op.reduce_mean(op.power(hidden, np.float32(2)), [-1], keep_dims=True)
        inverse = op.divide(np.float32(1), op.sqrt(op.add(mean_square, np.float32(self.config.rms_norm_eps))))
        return op.multiply(self.weights.vector(f"{name}.weight"), op.multiply(hidden, inverse))


def _parameter(name: str, shape: list[int], kind: ov.Type) -> ov.Node:
    parameter = op.parameter(shape, kind)
    parameter.set_friendly_name(name)  # how SDPAToPagedAttention finds it
    parameter.output(0).set_names({name})
    return parameter
