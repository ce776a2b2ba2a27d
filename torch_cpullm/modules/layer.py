"""A decoder layer whose halves are fused ops, or one. The class of the original layer stays its base class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from torch_cpullm.detect.structure import LayerStructure
from torch_cpullm.errors import UnsupportedModelError
from torch_cpullm.formats import KvFormat
from torch_cpullm.generate.angles import AngleTable
from torch_cpullm.generate.masks import visible
from torch_cpullm.kv import LayerSpec, PagedCache
from torch_cpullm.kv.cache import PagedLayer
from torch_cpullm.modules.notice import warn_once
from torch_cpullm.ops import block as ops
from torch_cpullm.ops import layers as layer_ops
from torch_cpullm.ops.layers import KvLayers, LayerNumbers, LayerStack, LayerWeights, stack_layers
from torch_cpullm.plan import LayerPlan
from torch_cpullm.plan.shard import EVERYTHING


class FusedLayer:
    """Mixin in front of a model's own decoder layer class; made by `fused_class`, set by swap.py.

    `_cpullm` holds the LayerStructure and what is fused. Whatever the fused ops do not do (training, gradients,
    attention weights as output, a foreign cache) goes to the original forward, with a warning once.
    """

    _cpullm: FusedParts
    training: bool

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the original; hidden_states [B, T, D] in and out, alone or with attention weights, which are None."""
        reason = self.why_not_fused(hidden_states, args, kwargs)
        weights = None if reason else _weights(self)
        if weights is None:
            reason = reason or "a module that it was fused from was replaced (by an adapter, say)"
            if self._cpullm.share != EVERYTHING:
                raise UnsupportedModelError(
                    f"{type(self).__name__}: expected a call of its fused forward, the only one of a layer that ranks "
                    f"share, but {reason}"
                )
            warn_once(f"{type(self).__name__} runs its original forward: {reason}")
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        out_BTD = self._fused_forward(hidden_states, *weights, kwargs)
        return (out_BTD, None) if self._cpullm.structure.returns_tuple else out_BTD

    def _fused_forward(
        self,
        hidden_states: torch.Tensor,
        attention: ops.AttentionWeights,
        mlp: ops.MlpWeights | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        parts = self._cpullm
        batch, tokens = hidden_states.shape[:2]
        slot = _slot(parts, batch, tokens, kwargs)
        kv, rope_BTR, mask = slot.open(batch, tokens), self._rope(hidden_states, kwargs), _mask(kwargs)
        if parts.structure.parallel and mlp is not None:
            stack = stack_layers([LayerWeights(attention, mlp)], parts.layer_numbers)
            out_BTD = layer_ops.decoder_layers(hidden_states, stack, rope_BTR, KvLayers([kv.pages], *kv[1:]), mask)
            slot.close(tokens)
            return out_BTD
        hidden_BTD = ops.attention_block(hidden_states, attention, rope_BTR, kv, mask, parts.numbers, parts.norm)
        slot.close(tokens)
        if mlp is not None and parts.structure.mlp is not None:
            return ops.mlp_block(hidden_BTD, mlp, parts.structure.mlp.activation, parts.norm, parts.mlp_group)
        return _original_mlp(self, parts.structure, hidden_BTD)

    def why_not_fused(self, hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """The reason this call must take the original path, or None."""
        if self.training:
            return "the model is in training mode (model.eval() for speed)"
        if torch.is_grad_enabled() and hidden.requires_grad:
            return "gradients are enabled (use torch.no_grad() for speed)"
        if torch.compiler.is_compiling():
            return "torch.compile traces it"
        if args:
            return "it was called with positional arguments"
        if kwargs.get("output_attentions") or _wants_attention_weights(self):
            return "output_attentions asks for attention weights, which a fused block never forms"
        cache = _cache(kwargs)
        if cache is not None and not isinstance(cache, PagedCache):
            return f"past_key_values is a {type(cache).__name__}, not the paged cache generate() makes by itself"
        if kwargs.get("cache") is not None:
            return "continuous batching brings its own cache"
        if kwargs.get("attention_mask") is not None and _mask(kwargs) is None:
            return "attention_mask is no mask of four dimensions that shows or hides tokens"
        if hidden.device.type != "cpu":
            return f"hidden states are on {hidden.device.type}"
        return self._why_no_angles(kwargs)

    def _why_no_angles(self, kwargs: dict[str, Any]) -> str | None:
        if self._cpullm.structure.attention.angle_table is None:
            passed = isinstance(kwargs.get("position_embeddings"), tuple)
            return None if passed else "position_embeddings (cos, sin) were not passed"
        return None if isinstance(kwargs.get("position_ids"), torch.Tensor) else "position_ids were not passed"

    def angles(self) -> AngleTable | None:
        """The table that its attention looks up its positions in; None: it is called with cos and sin."""
        attention = self._cpullm.structure.attention
        if attention.angle_table is None:
            return None
        return AngleTable(self._modules[attention.path]._buffers[attention.angle_table])  # type: ignore[attr-defined]

    def _rope(self, hidden_BTD: torch.Tensor, kwargs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cos and sin [B or 1, T, R]; of no channels where it does not rotate."""
        table = self.angles()
        cos_BTR, sin_BTR = table(hidden_BTD, kwargs["position_ids"]) if table else kwargs["position_embeddings"]
        rotates = self._cpullm.structure.attention.rotates
        return (cos_BTR, sin_BTR) if rotates else (cos_BTR[..., :0], sin_BTR[..., :0])

    @staticmethod
    def stack(layers: Sequence[FusedLayer]) -> LayerStack | None:
        """Layers as one operator takes them; None where they are not alike, or one is not fused as a whole."""
        first = layers[0]._cpullm
        weights = []
        for layer in layers:
            found = _weights(layer)
            if found is None or found[1] is None or not layer._cpullm.is_like(first):
                return None
            weights.append(LayerWeights(found[0], found[1], layer._cpullm.structure.attention.rotates))
        return stack_layers(weights, first.layer_numbers)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by the original class, which can be imported; ours is made on the fly."""
        return _rebuild, (type(self).__mro__[2],), self.__getstate__()  # type: ignore[attr-defined]


class FusedParts:
    """What a fused layer knows about itself.

    `structure` is the whole layer's, the numbers of heads in `spec` and `numbers` are the rank's. A block of which
    `share` has a part gives the residual and the sum over all ranks of `group`; without one, its own term of it.
    """

    def __init__(self, plan: LayerPlan, kv_format: KvFormat, group: int = 0) -> None:
        self.structure = structure = plan.structure
        self.fuse_mlp = plan.fuse_mlp
        self.share = plan.share
        attention, heads = structure.attention, plan.share.heads
        query, kv = (len(heads.query), len(heads.kv)) if heads else (attention.heads, attention.kv_heads)
        self.spec = LayerSpec(kv, attention.channels, kv_format)
        self.norm = ops.NormNumbers(structure.eps, structure.offset, structure.centred)
        self.numbers = ops.AttentionNumbers(
            query,
            kv,
            attention.scale,
            attention.soft_cap,
            group if self.share.heads else 0,
            attention.qkv_in_groups,
            attention.rope_pairs,
        )
        self.mlp_group = group if self.share.columns else 0

    @property
    def layer_numbers(self) -> LayerNumbers:
        """Of a layer that is fused as a whole."""
        structure = self.structure
        assert structure.mlp is not None
        return LayerNumbers(self.numbers, self.norm, structure.mlp.activation, self.mlp_group, structure.parallel)

    def is_like(self, other: FusedParts) -> bool:
        """Whether one operator may compute both layers."""
        mine, theirs = ((each.spec, each.share, each.structure.form()) for each in (self, other))
        return mine == theirs


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def fused_class(original: type[nn.Module]) -> type[nn.Module]:
    """The class of `original`'s fused layers: same name, so that reports and checkpoints read as before."""
    if original not in _classes:
        names = {key: getattr(original, key) for key in ("__module__", "__qualname__", "__doc__")}
        _classes[original] = type(original.__name__, (FusedLayer, original), names)
    return _classes[original]


def fuse_layer(layer: nn.Module, plan: LayerPlan, kv_format: KvFormat, group: int = 0) -> FusedParts:
    """Give a layer its fused class; its linear layers must be packed already. `group`: of the ranks that share it."""
    parts = FusedParts(plan, kv_format, group)
    layer.__class__ = fused_class(type(layer))
    vars(layer)["_cpullm"] = parts
    return parts


def _rebuild(original: type[nn.Module]) -> nn.Module:
    made = fused_class(original)
    return made.__new__(made)


def _wants_attention_weights(layer: Any) -> bool:
    config = vars(layer._modules[layer._cpullm.structure.attention.path]).get("config")
    # Past PreTrainedConfig's own __getattribute__, which takes longer than one of our ops is called in.
    return config is not None and bool(object.__getattribute__(config, "__dict__").get("_output_attentions"))


def _cache(kwargs: dict[str, Any]) -> Any:
    """What a layer is told to remember keys and values in, by either of the names that models have for it."""
    cache = kwargs.get("past_key_values")
    return kwargs.get("layer_past") if cache is None else cache


def _mask(kwargs: dict[str, Any]) -> torch.Tensor | None:
    return visible(kwargs.get("attention_mask"))


def _slot(parts: FusedParts, batch: int, tokens: int, kwargs: dict[str, Any]) -> PagedLayer:
    """Where the layer's keys and values go."""
    cache: PagedCache | None = _cache(kwargs)
    if cache is not None:
        return cache.paged_layers[parts.structure.attention.layer_index]
    # No past, and nothing to remember: pages for the length of this call.
    return PagedCache([parts.spec], limit_bytes=_bytes_for(parts.spec, batch, tokens)).paged_layers[0]


def _bytes_for(spec: LayerSpec, batch: int, tokens: int) -> int:
    from torch_cpullm.ops.attention import PAGE_TOKENS

    return spec.page_bytes * batch * -(-tokens // PAGE_TOKENS)


# Tables of modules and tensors directly: nn.Module's attribute access takes as long as a fused op's call, and a layer
# needs fifteen of them for each token.
def _weights(layer: Any) -> tuple[ops.AttentionWeights, ops.MlpWeights | None] | None:
    """The layer's tensors as they are now; None when a module is none that was packed, or a norm has no gain."""
    parts = layer._cpullm
    structure, attention = parts.structure, parts.structure.attention
    try:
        module = layer._modules[attention.path]
        found = ops.AttentionWeights(
            [_packed(module, name) for name in attention.qkv],
            _packed(module, attention.output),
            _gain(layer, structure.attention_norm),
            _gain(module, attention.query_norm) if attention.query_norm else None,
            _gain(module, attention.key_norm) if attention.key_norm else None,
            _gain(layer, structure.attention_output_norm) if structure.attention_output_norm else None,
            _bias(layer, structure.attention_norm),
        )
        if not parts.fuse_mlp or structure.mlp is None:
            return found, None
        module = layer._modules[structure.mlp.path]
        return found, ops.MlpWeights(
            [_packed(module, name) for name in structure.mlp.gate_up],
            _packed(module, structure.mlp.down),
            _gain(layer, structure.mlp_norm),
            _gain(layer, structure.mlp_output_norm) if structure.mlp_output_norm else None,
            _bias(layer, structure.mlp_norm),
        )
    except KeyError:
        return None


def _packed(module: Any, name: str) -> torch.Tensor:
    packed: torch.Tensor = module._modules[name]._buffers["packed"]
    return packed


def _gain(module: Any, name: str) -> torch.Tensor:
    weight: torch.Tensor = module._modules[name]._parameters["weight"]
    return weight


def _bias(module: Any, name: str) -> torch.Tensor | None:
    bias: torch.Tensor | None = module._modules[name]._parameters.get("bias")
    return bias


def _original_mlp(layer: Any, structure: LayerStructure, hidden_BTD: torch.Tensor) -> torch.Tensor:
    """The layer's own MLP (a mixture of experts, say) between our norm order and residual."""
    out_BTD = layer.mlp(getattr(layer, structure.mlp_norm)(hidden_BTD))
    if structure.mlp_output_norm:
        out_BTD = getattr(layer, structure.mlp_output_norm)(out_BTD)
    residual_BTD: torch.Tensor = hidden_BTD + out_BTD
    return residual_BTD
