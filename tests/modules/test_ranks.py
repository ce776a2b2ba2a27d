"""All ranks of a model in one process: their blocks' terms add up to the whole's output, their heads to its logits.

Ranks are threads here, and what adds up is plain torch: what transports and block drivers have to do as well.
"""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

import torch_cpullm
from torch_cpullm.api import optimize_by
from torch_cpullm.config import Config
from torch_cpullm.modules import layer as fused
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.ops import block, layers
from torch_cpullm.ops.attention import KvPages
from torch_cpullm.ops.rowwise import rms_norm
from torch_cpullm.plan import Shard
from torch_cpullm.testing.models import tiny_model

_PATIENCE = 300.0  # seconds: the machine may be paused


class Meeting:
    """Where the threads of `size` ranks exchange tensors."""

    def __init__(self, size):
        self.size = size
        self._given = [None] * size
        self._barrier = threading.Barrier(size, timeout=_PATIENCE)

    def exchange(self, rank, given):
        """What each rank gives, in order."""
        self._given[rank] = given
        self._barrier.wait()
        all_given = list(self._given)
        self._barrier.wait()
        return all_given

    def run(self, body):
        """Call body(rank) in a thread for each; what the first of them raised is raised here."""

        def call(rank):
            try:
                return body(rank)
            except BaseException:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self.size) as pool:
            futures = [pool.submit(call, rank) for rank in range(self.size)]
        faults = [future.exception() for future in futures if future.exception()]
        for fault in sorted(faults, key=lambda fault: isinstance(fault, threading.BrokenBarrierError)):
            raise fault
        return [future.result() for future in futures]


class Ranks:
    """`size` copies of a model, each optimised for its shard."""

    def __init__(self, model, config, size, windows_NT=None):
        self.models = [copy.deepcopy(model) for _ in range(size)]
        for rank, each in enumerate(self.models):
            optimize_by(each, config, windows_NT, shard=Shard(rank, size))
        self._meeting = Meeting(size)
        self._rank = threading.local()

    def run(self, body):
        """Call body(model) on all ranks at once; what it returns, by rank."""

        def call(rank):
            self._rank.value = rank
            with torch.no_grad():
                return body(self.models[rank])

        with self._joined():
            return self._meeting.run(call)

    @contextmanager
    def _joined(self):
        heads = [model.get_output_embeddings() for model in self.models]
        handles = [head.register_forward_hook(self._join_logits) for head in heads if isinstance(head, PackedLinear)]
        before = block.attention_block, block.mlp_block, layers.decoder_layers
        ways = fused.stack_layers, fused.FusedLayer.stack
        try:
            block.attention_block, block.mlp_block, layers.decoder_layers = self._attention, self._mlp, self._parallel
            fused.stack_layers = lambda weights, numbers: (weights, numbers)
            fused.FusedLayer.stack = staticmethod(lambda _: None)
            yield
        finally:
            block.attention_block, block.mlp_block, layers.decoder_layers = before
            fused.stack_layers, fused.FusedLayer.stack = ways
            for handle in handles:
                handle.remove()

    def _share(self):
        model = self.models[self._rank.value]
        return vars(model.get_submodule(model._cpullm_layers[0]))["_cpullm"].share

    def _attention(self, hidden, weights, *others):
        return self._sum(_attention_block, hidden, weights, others, self._share().heads is not None)

    def _mlp(self, hidden, weights, *others):
        return self._sum(_mlp_block, hidden, weights, others, self._share().columns is not None)

    def _parallel(self, hidden, stack, rope, kv, mask):
        """One layer whose halves read the same hidden."""
        (weights,), numbers = stack
        pages = KvPages(kv.pages[0], *kv[1:])
        after = self._attention(hidden, weights.attention, rope, pages, mask, numbers.attention, numbers.norm)
        return after + self._mlp(hidden, weights.mlp, numbers.activation, numbers.norm) - hidden

    def _sum(self, run, hidden, weights, others, shared):
        """A norm of the output stands behind the sum, since it needs all of it."""
        if not shared:
            return run(hidden, weights, *others)
        term = run(hidden, weights._replace(output_norm_D=None), *others) - hidden
        total = torch.stack(self._meeting.exchange(self._rank.value, term)).sum(0)
        if weights.output_norm_D is not None:
            norm = next(each for each in others if isinstance(each, block.NormNumbers))
            total = rms_norm(total, weights.output_norm_D, norm.eps, norm.offset)
        return hidden + total

    def _join_logits(self, head, _, logits):
        return logits if head.part is None else torch.cat(self._meeting.exchange(self._rank.value, logits), dim=-1)


_attention_block, _mlp_block = block.attention_block, block.mlp_block

SIZES = {
    "vocab_size": 200,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OLD = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
FAMILIES = {
    "llama": ("LlamaConfig", SIZES),
    "llama, one KV head": ("LlamaConfig", {**SIZES, "num_key_value_heads": 1}),
    "llama, two KV heads": ("LlamaConfig", {**SIZES, "num_attention_heads": 8, "num_key_value_heads": 2}),
    "llama with biases": ("LlamaConfig", {**SIZES, "attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("LlamaConfig", {**SIZES, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen3": ("Qwen3Config", SIZES),
    "phi3": ("Phi3Config", SIZES),
    "gemma": ("GemmaConfig", SIZES),
    "gemma2": ("Gemma2Config", {**SIZES, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3TextConfig", {**SIZES, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "mixtral": ("MixtralConfig", {**SIZES, "num_local_experts": 4}),
    "starcoder2": ("Starcoder2Config", {**SIZES, "sliding_window": None}),
    "phi": ("PhiConfig", SIZES),
    "phi, two KV heads": ("PhiConfig", {**SIZES, "num_attention_heads": 12, "num_key_value_heads": 2}),
    "gpt neox": ("GPTNeoXConfig", SIZES),
    "cohere": ("CohereConfig", SIZES),
    "falcon": ("FalconConfig", {**OLD, "new_decoder_architecture": True, "num_kv_heads": 3}),
    "falcon, seven heads": ("FalconConfig", {**OLD, "hidden_size": 7 * 16, "num_attention_heads": 7, "bias": True}),
    "gpt-j": ("GPTJConfig", {"n_embd": 192, "n_head": 12, "n_layer": 2, "rotary_dim": 8, "vocab_size": 200}),
}
KEEP = Config(weights="keep", kv_cache="keep")
IDS = torch.randint(3, 128, (2, 20), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS).index_put((torch.tensor(0), torch.arange(5)), torch.tensor(0))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).logits[MASK.bool()]


def tokens(model, **choices):
    arguments = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, **choices}
    return model.generate(IDS, attention_mask=MASK, **arguments)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_terms_of_all_ranks_are_the_whole(family, size):
    stock = tiny_model(*FAMILIES[family])
    expected = logits(stock)
    for got in Ranks(stock, KEEP, size).run(logits):
        assert got.shape == expected.shape
        assert (got - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    "family",
    ["llama, one KV head", "qwen3", "phi3", "gemma2", "phi", "gpt neox", "cohere", "falcon, seven heads", "gpt-j"],
)
def test_every_rank_generates_the_tokens_of_one(family):
    """Each with the pages of its own KV heads."""
    stock = tiny_model(*FAMILIES[family])
    expected = tokens(stock)
    for got in Ranks(stock, KEEP, 3).run(tokens):
        assert torch.equal(got, expected)


def test_what_is_shared_and_what_is_not():
    """The cases above are what they seem: heads and columns are shared, or replicated where they do not divide."""
    shares = {}
    for family in ("llama", "llama, two KV heads", "mixtral"):
        for size in (2, 3, 4):
            model = Ranks(tiny_model(*FAMILIES[family]), KEEP, size).models[-1]
            share = model.model.layers[0]._cpullm.share
            shares[family, size] = (share.heads and len(share.heads.kv), share.columns and len(share.columns))
    assert shares == {
        ("llama", 2): (1, 128),
        ("llama", 3): (1, 64),
        ("llama", 4): (None, 64),
        ("llama, two KV heads", 2): (1, 128),
        ("llama, two KV heads", 3): (None, 64),
        ("llama, two KV heads", 4): (1, 64),
        ("mixtral", 2): (1, None),
        ("mixtral", 3): (1, None),
        ("mixtral", 4): (None, None),
    }


@pytest.mark.parametrize("choices", [{"weights": "int8", "activations": "bf16"}, {"weights": "bf16"}])
def test_ranks_have_the_codes_of_one(choices):
    """Where activations know no groups, nothing but the order of sums tells how many ranks there are."""
    stock, config = tiny_model(*FAMILIES["llama with biases"]), Config(kv_cache="keep", **choices)
    whole = copy.deepcopy(stock)
    optimize_by(whole, config)
    expected = logits(whole)
    for got in Ranks(stock, config, 3).run(logits):
        assert (got - expected).norm() < 0.005 * expected.norm()


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_ranks_lose_no_more_than_one(weights):
    """Other groups of activations, and for "int4" scales in another format, round otherwise and not worse."""
    stock = tiny_model(*FAMILIES["llama"])
    whole = copy.deepcopy(stock)
    optimize_by(whole, Config(weights=weights))
    expected = logits(stock)
    alone = (logits(whole) - expected).norm()
    for got in Ranks(stock, Config(weights=weights), 3).run(logits):
        assert (got - expected).norm() < 1.2 * alone


def test_the_cache_of_a_rank_has_its_heads_only():
    whole = tiny_model(*FAMILIES["llama"])
    ranks = Ranks(whole, KEEP, 3)
    optimize_by(whole, KEEP)
    told, alone = torch_cpullm.explain(ranks.models[0]), torch_cpullm.explain(whole)
    assert [spec.kv_heads for spec in ranks.models[0]._cpullm_kv] == [1, 1]
    assert told.kv_bytes_per_token == alone.kv_bytes_per_token / 3
    assert told.kv_bytes_per_token_before == alone.kv_bytes_per_token_before
