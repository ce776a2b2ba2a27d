"""Taking turns: everyone gets the same work in the same state, who fails drops out, figures come from one placement."""

import itertools
import json
from pathlib import Path

import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

from torch_cpullm.benchmark import race as module
from torch_cpullm.benchmark.contest import Programme
from torch_cpullm.benchmark.player import PlayerError, Timed
from torch_cpullm.benchmark.race import MOVED, WARM_UP, Lap, Race, Work, main_placement
from torch_cpullm.benchmark.report import END, START, markdown, put_into, short_table
from torch_cpullm.benchmark.result import Result
from torch_cpullm.benchmark.sizes import sizes_of
from torch_cpullm.benchmark.standing import Entry, Sizes, standings
from torch_cpullm.cli.app import app
from torch_cpullm.errors import ConfigError
from torch_cpullm.machine.probe import Probe, Roofline

ROOF = Roofline(2, 30e9, 1e11, 2e11, 4e11, 8e11, 1.6e12)


class Fake:
    """Counts its tokens as an engine does, and remembers what it was asked."""

    def __init__(self, log, name, fails_at=None):
        self.log, self.name, self.fails_at, self.length, self.batch = log, name, fails_at, 0, 0

    def _note(self, *what):
        self.log.append((self.name, self.length, *what))
        if self.fails_at is not None and len(self.log) > self.fails_at:
            raise PlayerError(f"{self.name}: out of breath")

    def reset(self, batch):
        self.length, self.batch = 0, batch

    def extend(self, ids):
        assert ids.shape[0] == self.batch
        self._note("extend", ids.shape[1], int(ids.sum()))
        self.length += ids.shape[1]
        return Timed([0.5])

    def decode(self, tokens):
        self._note("decode", tokens)
        self.length += tokens + 1
        return Timed([0.1] * tokens)

    def crop(self, length):
        assert 1 <= length <= self.length
        self.length = length

    def close(self):
        self.log.append((self.name, "closed"))


@pytest.fixture
def still(monkeypatch):
    monkeypatch.setattr(module, "probe", lambda _: Probe("one complex", 2.0, 8e-8, 30e9))


def timed(log):
    """What was timed: all that is not the tokens before it or the growing before those."""
    return [entry for before, entry in itertools.pairwise(log) if before[2:] == ("decode", WARM_UP)]


@pytest.mark.usefixtures("still")
def test_everyone_starts_where_the_work_says():
    log = []
    race = Race({"a": Fake(log, "a"), "b": Fake(log, "b")}, vocabulary=100)
    works = [("prefill", 1, 0, 7), ("decode", 1, 0, 4), ("decode", 1, 20, 4), ("prefill", 1, 20, 5)]
    for work in itertools.starmap(Work, works):
        log.clear()
        race.run(work, 3)
        turns = timed(log)
        assert [turn[0] for turn in turns] == ["a", "b", "b", "a", "a", "b"]
        length = max(work.depth, 1) if work.kind == "decode" else work.depth
        assert {turn[1] for turn in turns} == {length}
        assert len({turn[2:] for turn in turns}) == 1  # the same tokens for all, each time
        assert turns[0][2:4] == (("decode", 4) if work.kind == "decode" else ("extend", work.tokens))
    assert len(race.laps) == 24


@pytest.mark.usefixtures("still")
def test_a_depth_is_filled_once_and_grown_from_there():
    log = []
    race = Race({"a": Fake(log, "a")}, vocabulary=100)
    for depth in (16, 50):
        race.run(Work("decode", 1, depth, 3), 4)
    assert [entry[3] for entry in log if entry[2] == "extend"] == [16, 34]
    race.run(Work("decode", 4, 16, 3), 2)
    assert [entry[3] for entry in log if entry[2] == "extend"] == [16, 34, 16]


@pytest.mark.usefixtures("still")
def test_who_fails_drops_out_and_the_others_go_on():
    log = []
    race = Race({"a": Fake(log, "a"), "b": Fake(log, "b", fails_at=5)}, vocabulary=100)
    race.run(Work("decode", 1, 8, 3), 3)
    assert race.fallen == {"b": "b: out of breath"}
    assert list(race.players) == ["a"]
    assert ("b", "closed") in log
    assert sum(lap.contender == "a" for lap in race.laps) == 3


def test_laps_go_on_until_enough_are_in_one_placement(monkeypatch):
    places = iter(["one complex", "SMT siblings"] * 3 + ["one complex"] * 100)
    monkeypatch.setattr(module, "probe", lambda _: Probe(next(places), 2.0, 8e-8, 30e9))
    race = Race({"a": Fake([], "a")}, vocabulary=100)
    race.run(Work("decode", 1, 8, 3), 4)
    assert [lap.placement for lap in race.laps].count("one complex") == 4
    assert [lap.placement for lap in race.laps].count(MOVED) == 3


def lap(seconds, placement="one complex", contender="transformers bf16", work=None):
    return Lap(contender, work or Work("decode", 1, 0, len(seconds)), seconds, placement, 30e9)


def test_main_placement_has_whole_cores_where_any_has():
    assert main_placement([lap([1.0], "SMT siblings")] * 3 + [lap([1.0])]) == "one complex"
    assert main_placement([lap([1.0], "SMT siblings"), lap([1.0], MOVED), lap([1.0], MOVED)]) == "SMT siblings"
    assert main_placement([]) == MOVED


SIZES = Sizes(products=1000, attention=8, kv_elements=64, idle_table=0, head=500)


def test_figures_of_a_decode():
    work = Work("decode", 2, 100, 4)
    entry = Entry(bits=8, kv_bits=8, weight_bytes=int(2e9), load_s=0.1, peak_bytes=1)
    laps = [lap([0.1, 0.1, 0.2, 0.1], work=work, contender="x"), lap([0.2] * 4, work=work, contender="x")]
    laps += [lap([9.0] * 4, MOVED, "x", work)]
    (one,) = standings(laps, {"x": entry}, SIZES, ROOF)
    assert one.laps == 2
    assert one.tokens_s == pytest.approx(2 / 0.15)
    assert (one.p50_s, one.p99_s) == (0.2, 0.2)
    bytes_ = 2e9 + 2 * 102 * 64 * 17 / 16
    assert one.share == pytest.approx((bytes_ / 0.1 + bytes_ / 0.2) / 2 / 30e9)


def test_figures_of_a_prefill():
    work = Work("prefill", 1, 10, 4)
    entry = Entry(bits=16, kv_bits=16, weight_bytes=1, load_s=0.1, peak_bytes=1)
    (one,) = standings([lap([0.5], work=work, contender="x")], {"x": entry}, SIZES, ROOF)
    assert one.tokens_s == 8
    assert one.share == pytest.approx((2 * 1000 * 4 + 8 * (40 + 10) + 2 * 500) / 0.5 / 8e11)


@pytest.mark.parametrize("tied", [True, False])
def test_sizes_are_counted_by_the_modules(tied):
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    sizes = sizes_of(config)
    assert sizes.products == 2 * (32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 48)
    assert sizes.kv_elements == 2 * 2 * 16
    assert sizes.attention == 4 * 2 * 32
    assert (sizes.head, sizes.idle_table) == (96 * 32, 0 if tied else 96 * 32)


@pytest.fixture
def result():
    works = [Work("prefill", 1, 0, 512), Work("decode", 1, 512, 4), Work("decode", 4, 512, 4)]
    names = {"transformers bf16": 16, "torch_cpullm int4": 4}
    entries = {name: Entry(bits, 8, 10**9, 0.5, 2 * 10**9) for name, bits in names.items()}
    laps = [lap([0.1 * (bits / 16)] * 4, contender=name, work=work) for work in works for name, bits in names.items()]
    fallen = {"llama.cpp Q4_0": "llama.cpp needs: pip install llama-cpp-python"}
    return Result(
        "tiny", "2026-01-01T00:00", 2, "avx2", "the machine", {"torch": "2"}, ROOF, entries, fallen,
        standings(laps, entries, SIZES, ROOF), laps,
    )  # fmt: skip


def test_a_result_comes_back_from_json(result, tmp_path):
    result.write(tmp_path / "r" / "x.json")
    assert Result.read(tmp_path / "r" / "x.json") == result


def test_the_report_has_every_figure(result):
    text = markdown(result)
    assert "## prefill 512" in text
    assert "## decode at depth 512, batch 4" in text
    assert "| **torch_cpullm int4** | 40.0 | 4.00x | 25.0 ms" in text
    assert "pip install llama-cpp-python" in text
    assert "30 GB/s read" in text


def test_the_readme_gets_the_table_between_its_marks(result, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    put_into(readme, [result])
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert short_table(result) in text
    assert "| **torch_cpullm int4** |" in text


@pytest.mark.parametrize("text", [None, "nothing", f"{END} {START}"])
def test_a_readme_without_marks(text, result, tmp_path):
    readme = tmp_path / "README.md"
    if text is not None:
        readme.write_text(text)
    with pytest.raises(ConfigError, match="readme: expected a file with the lines"):
        put_into(readme, [result])


def test_the_picture_is_drawn(result, tmp_path):
    picture = pytest.importorskip("torch_cpullm.benchmark.picture")
    picture.draw(result, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_a_programme_leaves_out_what_does_not_fit():
    small = Programme().within(700)
    assert small.prefills == (128, 512)
    assert small.depths == (0, 512)
    assert small.continued == 0
    sessions = Programme().sessions()
    assert [batch for batch, _ in sessions] == [1, 4, 8]
    assert Work("prefill", 1, 2048, 512) in sessions[0][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "gpt-9"], "shape: expected one of"),
        (["--only", "nobody"], "only: expected words of transformers bf16, torch_cpullm"),
        (["--depth", "512,x"], "depth: expected whole numbers from 0 on"),
        (["--tokens", "1"], "tokens: expected at least 2, got 1"),
        (["--model", "nowhere"], "shape: expected one of"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    outcome = CliRunner().invoke(app, ["bench", *arguments])
    assert outcome.exit_code == 2
    assert message in outcome.output.replace("\n", " ")


def test_the_command_from_end_to_end(tmp_path):
    shape = tmp_path / "tiny" / "config.json"
    shape.parent.mkdir()
    sizes = {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 256}
    shape.write_text(json.dumps({"model_type": "llama", **sizes, **heads}), encoding="utf-8")
    asked = ["--shape", str(shape), "--only", "torch_cpullm int8,Q4_0", "--prefill", "16", "--depth", "0,32,9999"]
    folders = ["--batch", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(app, ["bench", *asked, *folders, "--tokens", "3", "--repetitions", "1"])
    assert outcome.exit_code == 0, outcome.output
    (file,) = Path(tmp_path / "out").glob("*.json")
    result = Result.read(file)
    ours = [one for one in result.standings if one.contender == "torch_cpullm int8"]
    assert [one.work.name for one in ours] == ["prefill 16", "decode at depth 0", "decode at depth 32"]
    assert all(one.tokens_s > 0 for one in ours)
    assert result.entries["torch_cpullm int8"].peak_bytes > 10**8
