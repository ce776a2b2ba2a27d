"""The decode loop of our own: the same tokens, calls and stops as transformers', and theirs where it does not know."""

import pytest
import torch
from transformers import DynamicCache, GenerationMixin
from transformers.generation import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import torch_cpullm
from torch_cpullm.generate import loop
from torch_cpullm.generate import rows as growing
from torch_cpullm.generate.choice import largest, several_largest
from torch_cpullm.generate.rows import Rows
from torch_cpullm.generate.sampler import FusedSampler
from torch_cpullm.testing.models import bundled_model

IDS = torch.arange(40, 60)[None]


@pytest.fixture
def calls(monkeypatch):
    """Which loop ran: a list of "ours" and "theirs"."""
    ran = []
    theirs = GenerationMixin._sample
    monkeypatch.setattr(GenerationMixin, "_sample", lambda *a, **k: (ran.append("theirs"), theirs(*a, **k))[1])
    ours = loop.decode
    monkeypatch.setattr("torch_cpullm.generate.model.decode", lambda *a: (ran.append("ours"), ours(*a))[1])
    return ran


class Log(BaseStreamer):
    def __init__(self):
        self.seen = []

    def put(self, value):
        self.seen.append(value.tolist())

    def end(self):
        self.seen.append("end")


class LoggingProcessor(LogitsProcessor):
    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append((input_ids.clone(), scores.dtype, scores.shape))
        return scores


class StopAtThird(StoppingCriteria):
    def __init__(self, prompt):
        self.prompt, self.lengths = prompt, []

    def __call__(self, input_ids, scores, **kwargs):
        self.lengths.append(input_ids.shape[1])
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.prompt + 3)


def test_the_plain_cases_are_ours(ours, calls):
    ours.generate(IDS, max_new_tokens=4, do_sample=False)
    ours.generate(IDS, max_new_tokens=4, do_sample=True, top_p=0.9, num_return_sequences=2)
    assert calls == ["ours", "ours"]


@pytest.mark.parametrize(
    "asked",
    [
        {"return_dict_in_generate": True},
        {"return_dict_in_generate": True, "output_scores": True},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"past_key_values": DynamicCache()},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::torch_cpullm.modules.notice.FallbackWarning")
def test_what_it_does_not_know_is_theirs(asked, ours, calls):
    ours.generate(IDS, max_new_tokens=4, do_sample=False, **asked)
    assert calls == ["theirs"]


def test_processors_criteria_and_streamers_are_told_the_same(stock, ours):
    heard = []
    for model in (stock, ours):
        streamer, processor, stop = Log(), LoggingProcessor(), StopAtThird(IDS.shape[1])
        out = model.generate(
            IDS, max_new_tokens=9, do_sample=False, streamer=streamer, logits_processor=[processor],
            stopping_criteria=[stop],
        )  # fmt: skip
        heard.append((streamer.seen, stop.lengths, processor.seen, out))
    (stream, lengths, processed, out), theirs = heard[1], heard[0]
    assert (stream, lengths) == (theirs[0], theirs[1])
    assert stream[-1] == "end"
    assert len(stream) == 5  # the prompt, three tokens, the end
    for mine, other in zip(processed, theirs[2], strict=True):
        assert torch.equal(mine[0], other[0])
        assert mine[1:] == other[1:]
    assert torch.equal(out, theirs[3])
    assert out.is_contiguous()


def test_sequences_that_end_are_padded(stock, ours):
    ids = torch.cat([IDS, IDS + 3000])
    free = stock.generate(ids, max_new_tokens=12, do_sample=False)
    first, second = free[:, IDS.shape[1] :].tolist()
    end = next(token for token in first[:-1] if token not in second)
    both = [
        model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=0)
        for model in (stock, ours)
    ]
    assert torch.equal(*both)
    assert both[0].shape == free.shape
    assert both[0][0, -1] == 0


def test_a_text_longer_than_the_first_memory(stock, ours, monkeypatch):
    monkeypatch.setattr(growing, "_SPARE", 3)
    mask = torch.ones_like(IDS).repeat(2, 1)
    mask[0, :4] = 0
    asked = {"attention_mask": mask, "max_new_tokens": 30, "do_sample": False}
    ids = torch.cat([IDS, IDS.flip(1)])
    assert torch.equal(stock.generate(ids, **asked), ours.generate(ids, **asked))


def test_rows_keep_what_was_seen():
    rows = Rows(torch.tensor([[1, 2], [3, 4]]), longest=4)
    before = rows.value
    for column in range(2000):
        rows.append(torch.tensor([column, -column]))
    assert before.tolist() == [[1, 2], [3, 4]]
    assert rows.value.shape == (2, 2002)
    assert rows.value[1, 2:].tolist() == [-column for column in range(2000)]


@pytest.mark.parametrize("words", [1, 255, 511, 512, 513, 8192, 32_000, 50_257, 151_936])
@pytest.mark.parametrize("batch", [1, 3])
def test_largest_is_argmax(words, batch):
    generator = torch.Generator().manual_seed(words)
    for scores in (
        torch.randn(batch, words, generator=generator),
        torch.randn(batch, words, generator=generator).bfloat16().float(),  # many ties
        torch.zeros(batch, words),
        torch.full((batch, words), float("-inf")),
    ):
        assert torch.equal(largest(scores), scores.argmax(-1))
    scores = torch.randn(batch, words, generator=generator)
    for place in {0, words // 2, words - 1}:
        for value in (50.0, float("inf"), float("nan")):
            one = scores.clone()
            one[-1, place] = value
            assert torch.equal(largest(one), one.argmax(-1))


@pytest.mark.parametrize("words", [70, 511, 4224, 4225, 50_257])
@pytest.mark.parametrize("count", [1, 17, 66])
def test_several_largest_are_topk(words, count):
    generator = torch.Generator().manual_seed(words)
    distinct = torch.randn(3, words, generator=generator)
    values, indices = several_largest(distinct, count)
    expected = distinct.topk(count)
    assert torch.equal(values, expected.values)
    assert torch.equal(indices, expected.indices)
    for scores in (distinct.bfloat16().float(), torch.zeros(3, words), torch.full((3, words), float("-inf"))):
        values, indices = several_largest(scores, count)
        assert torch.equal(values, scores.topk(count).values)
        assert torch.equal(scores.gather(1, indices), values)
        assert all(len(row.unique()) == count for row in indices)


@pytest.fixture
def sampling():
    return torch_cpullm.optimize(bundled_model(), weights="keep", kv_cache="keep", sampler="fused")


def test_the_fused_sampler_is_seeded_by_torch(sampling, monkeypatch):
    drawn = []
    draw = FusedSampler.draw
    monkeypatch.setattr(FusedSampler, "draw", lambda *a: (drawn.append(a[2].shape), draw(*a))[1])
    asked = {"max_new_tokens": 20, "do_sample": True, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1}
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(sampling.generate(IDS, num_return_sequences=3, **asked))
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    assert not torch.equal(texts[0][0], texts[0][1])
    assert drawn


def test_with_one_token_left_it_is_greedy(sampling, stock):
    asked = {"max_new_tokens": 20, "do_sample": True, "top_k": 1}
    assert torch.equal(sampling.generate(IDS, **asked), stock.generate(IDS, max_new_tokens=20, do_sample=False))


def test_what_the_fused_sampler_does_not_know_is_drawn_as_ever(sampling, stock):
    asked = {"max_new_tokens": 12, "do_sample": True, "typical_p": 0.9}
    torch.manual_seed(0)
    expected = stock.generate(IDS, **asked)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="these tokens are drawn by transformers: .*TypicalLogitsWarper"):
        assert torch.equal(sampling.generate(IDS, **asked), expected)


def test_restore_forgets_the_sampler(sampling):
    torch_cpullm.restore(sampling)
    assert not hasattr(sampling, "_cpullm_sampler")


def test_a_call_that_is_not_plain_says_that_it_draws_as_ever(sampling):
    with pytest.warns(UserWarning, match="its own loop was asked for more"):
        sampling.generate(IDS, max_new_tokens=3, do_sample=True, return_dict_in_generate=True)


def test_without_our_cache_explain_says_who_samples():
    model = torch_cpullm.optimize(bundled_model(), weights="keep", attention="keep", sampler="fused")
    assert "sampler: transformers' own" in str(torch_cpullm.explain(model))


def test_the_sampler_is_saved(sampling, tmp_path):
    torch_cpullm.save(sampling, tmp_path)
    asked = {"max_new_tokens": 8, "do_sample": True, "top_p": 0.9}
    torch.manual_seed(5)
    expected = sampling.generate(IDS, **asked)
    torch.manual_seed(5)
    assert torch.equal(torch_cpullm.load(tmp_path).generate(IDS, **asked), expected)
