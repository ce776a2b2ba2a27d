"""Which lists of processors the fused sampler stands for, and that its draws follow torch's seed."""

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from torch_cpullm.generate.sampler import FusedSampler
from torch_cpullm.ops.sample import Filters


def of(*processors):
    return FusedSampler.of(LogitsProcessorList(processors))


class OwnTemperature(TemperatureLogitsWarper):
    """A subclass may compute anything."""


def penalty_behind_a_prompt():
    return RepetitionPenaltyLogitsProcessor(1.2, prompt_ignore_length=3)


def test_all_five():
    sampler = of(
        RepetitionPenaltyLogitsProcessor(1.2),
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(50),
        TopPLogitsWarper(0.9),
        MinPLogitsWarper(0.05),
    )
    assert sampler.filters == Filters(temperature=0.7, top_k=50, top_p=0.9, min_p=0.05, repetition_penalty=1.2)
    assert "top_k=50" in repr(sampler)


def test_some():
    assert of().filters == Filters()
    assert of(TopPLogitsWarper(0.8)).filters == Filters(top_p=0.8)
    assert of(TemperatureLogitsWarper(2.0), MinPLogitsWarper(0.1)).filters == Filters(temperature=2.0, min_p=0.1)


@pytest.mark.parametrize(
    "processors",
    [
        (NoRepeatNGramLogitsProcessor(3),),
        (TopKLogitsWarper(50), NoRepeatNGramLogitsProcessor(3)),
        (OwnTemperature(0.7),),
        (str,),
        (TopPLogitsWarper(0.9), TopKLogitsWarper(50)),
        (TemperatureLogitsWarper(0.7), RepetitionPenaltyLogitsProcessor(1.2)),
        (TemperatureLogitsWarper(0.7), TemperatureLogitsWarper(0.7)),
        (TopKLogitsWarper(50, min_tokens_to_keep=2),),
        (TopPLogitsWarper(0.9, min_tokens_to_keep=2),),
        (MinPLogitsWarper(0.9, min_tokens_to_keep=2),),
        (TopKLogitsWarper(50, filter_value=-100.0),),
        (penalty_behind_a_prompt(),),
    ],
    ids=lambda processors: ", ".join(type(processor).__name__ for processor in processors),
)
def test_what_it_does_not_stand_for(processors):
    assert of(*processors) is None


def test_the_list_that_generate_makes(stock):
    config = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=40, top_p=0.9, min_p=0.05, repetition_penalty=1.1, eos_token_id=0
    )
    made = stock._get_logits_processor(config, input_ids_seq_length=1, device="cpu")
    assert FusedSampler.of(made).filters == Filters(0.7, 40, 0.9, 0.05, 1.1)


def draws(sampler, count=50):
    ids_BS, logits_BV = torch.tensor([[1, 2], [3, 3]]), torch.linspace(-1, 1, 80).view(2, 40)
    return torch.stack([sampler.draw(ids_BS, logits_BV) for _ in range(count)])


def test_draws_follow_the_seed():
    processors = (RepetitionPenaltyLogitsProcessor(1.3), TopKLogitsWarper(30))
    torch.manual_seed(7)
    first, second = of(*processors), of(*processors)
    expected = draws(first)
    assert expected.shape == (50, 2)
    assert expected.dtype == torch.int64
    assert not torch.equal(draws(second), expected)
    torch.manual_seed(7)
    assert torch.equal(draws(of(*processors)), expected)


def test_draws_leave_the_global_generator_alone():
    sampler = of(TopKLogitsWarper(30))
    state = torch.get_rng_state()
    draws(sampler)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_penalty_sees_the_tokens():
    sampler = of(RepetitionPenaltyLogitsProcessor(1000.0))
    logits_1V = torch.tensor([[30.0, 29.0]])
    assert [int(sampler.draw(torch.tensor([[seen]]), logits_1V)) for seen in (0, 1)] == [1, 0]


def test_tokens_without_logits_are_not_penalised():
    sampler = FusedSampler(Filters(repetition_penalty=3.0, top_k=1))
    logits_BV = torch.tensor([[1.0, 2.0, 1.9], [1.0, 2.0, 1.9]])
    ids_BS = torch.tensor([[7, 1, 9], [0, 3, 0]])  # row 0 has had token 1, row 1 token 0
    assert sampler.draw(ids_BS, logits_BV).tolist() == [2, 1]
