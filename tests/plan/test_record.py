"""Values to JSON and back; what does not fit its type is named."""

import json
from dataclasses import dataclass
from typing import Literal

import pytest

from torch_cpullm.config import Config
from torch_cpullm.detect import detect
from torch_cpullm.plan import make_plan
from torch_cpullm.plan.plan import Plan
from torch_cpullm.plan.record import from_json, to_json
from torch_cpullm.testing.models import ATTENTION_ONLY, LEFT_ALONE, WHOLE, tiny_model


@dataclass(frozen=True)
class Inner:
    name: str
    kind: Literal["a", "b"]


@dataclass(frozen=True)
class Outer:
    count: int
    ratio: float
    flag: bool
    inner: Inner | None
    rows: tuple[Inner, ...]
    by_name: dict[str, Inner]


VALUE = Outer(3, 0.1, True, None, (Inner("x", "a"), Inner("y", "b")), {"z": Inner("z", "a")})


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral", "deepseek v3"])
@pytest.mark.parametrize("config", [Config(), Config(weights="int4", symmetric=False), Config(attention="keep")])
def test_a_plan_comes_back(name, config):
    model = tiny_model(*{**WHOLE, **ATTENTION_ONLY, **LEFT_ALONE}[name])
    plan = make_plan(detect(model), config)
    assert from_json(Plan, json.loads(json.dumps(to_json(plan)))) == plan


def test_every_kind_comes_back():
    assert from_json(Outer, json.loads(json.dumps(to_json(VALUE)))) == VALUE
    assert from_json(float, 2) == 2.0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("count", "3", r"record\.count: expected int, got '3'"),
        ("count", True, r"record\.count: expected int, got True"),
        ("ratio", None, r"record\.ratio: expected float, got None"),
        ("flag", 1, r"record\.flag: expected bool, got 1"),
        ("inner", [], r"record\.inner: expected an object"),
        ("inner", {"name": "x", "kind": "c"}, r"record\.inner\.kind: expected one of \('a', 'b'\), got 'c'"),
        ("inner", {"name": "x"}, r"record\.inner: expected the fields of Inner, got other ones: kind"),
        ("rows", {}, r"record\.rows: expected a list"),
        ("rows", [{"name": 1, "kind": "a"}], r"record\.rows\[0\]\.name: expected str, got 1"),
        ("by_name", [1], r"record\.by_name: expected an object"),
        ("by_name", {"z": 5}, r"record\.by_name\.z: expected an object, got 5"),
    ],
)
def test_what_does_not_fit_is_named(path, value, message):
    with pytest.raises(ValueError, match=message):
        from_json(Outer, {**to_json(VALUE), path: value})


def test_a_choice_that_does_not_exist():
    with pytest.raises(ValueError, match="group_size"):
        from_json(Config, {**to_json(Config()), "group_size": 7})


def test_only_values_are_written():
    with pytest.raises(TypeError, match="expected a dataclass"):
        to_json({"a": object()})
