"""Laps count what they say, contenders take turns, and the model is left as it was."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from torch_cpullm.benchmark import timing


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4,  # one token in four would end the text
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=[0, 1, 2, 3],
    )
    return LlamaForCausalLM(config).eval()


def test_lap_runs_past_the_end_of_text(model: LlamaForCausalLM) -> None:
    lap = timing.time_lap(model, torch.tensor([[1, 2, 3]]), new_tokens=5)
    assert (lap.prompt_tokens, lap.decoded_tokens) == (3, 4)
    assert lap.prefill == pytest.approx(3 / lap.prefill_s)
    assert lap.decode == pytest.approx(4 / lap.decode_s)
    assert model.generation_config.eos_token_id == [0, 1, 2, 3]


def test_contenders_take_turns(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    other = LlamaForCausalLM(model.config).eval()
    ran = []

    def fake_lap(contender: LlamaForCausalLM, prompt_BT: torch.Tensor, new_tokens: int) -> timing.Lap:
        ran.append("a" if contender is model else "b")
        return timing.Lap(prompt_BT.shape[1], 0.5, new_tokens - 1, float(len(ran)))

    monkeypatch.setattr(timing, "time_lap", fake_lap)
    speeds = timing.race({"a": model, "b": other}, torch.ones(1, 8, dtype=torch.int64), new_tokens=3, budget_s=0.0)
    assert "".join(ran) == "ab" + "abbaab"  # warm-up, then three laps in alternating order
    assert speeds["a"].prefill == 16.0
    assert [lap.decode_s for lap in speeds["a"].laps] == [3.0, 6.0, 7.0]
    assert speeds["a"].decode == 2 / 6.0  # the median lap
    assert "3 laps" in repr(speeds["b"])
