"""Plans and what else describes a model, as JSON and back: values are checked against their types, none is executed."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch_cpullm.detect.structure import LEFT_OUT


def _is_left_out(field: Any, content: dict[str, Any]) -> bool:
    return field.metadata == LEFT_OUT and (field.name not in content or content[field.name] == field.default)


def to_json(value: Any) -> Any:
    """Dataclasses become objects, tuples lists; numbers, strings, booleans and None stay."""
    if is_dataclass(value) and not isinstance(value, type):
        content = {field.name: getattr(value, field.name) for field in fields(value)}
        return {field.name: to_json(content[field.name]) for field in fields(value) if not _is_left_out(field, content)}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"value: expected a dataclass, a tuple, a number, a string or None, got {type(value).__name__}")


def from_json(kind: Any, value: Any, where: str = "record") -> Any:
    """The inverse of `to_json` for a value of type `kind`.

    Args:
        kind: a dataclass, or what its fields may be: str, int, float, bool, Literal, tuple[X, ...], dict[str, X], and
            X | None.
        value: what json.loads returned.
        where: how errors name it.

    Raises:
        ValueError: `value` is not of that type; names the place, what was expected and what came.
    """
    origin = get_origin(kind)
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if origin in (Union, types.UnionType):
        (some,) = (choice for choice in get_args(kind) if choice is not types.NoneType)
        return None if value is None else from_json(some, value, where)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in get_args(kind)):
            raise _mismatch(where, f"one of {get_args(kind)}", value)
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise _mismatch(where, "a list", value)
        return tuple(from_json(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _mismatch(where, "an object", value)
        return {key: from_json(get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if kind not in (str, int, float, bool) or type(value) is not kind:
        raise _mismatch(where, str(getattr(kind, "__name__", kind)), value)
    return value


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(where, "an object", value)
    names = {field.name for field in fields(kind) if field.name in value or not _is_left_out(field, value)}
    if set(value) != names:
        odd = ", ".join(sorted(set(value) ^ names))
        raise ValueError(f"{where}: expected the fields of {kind.__name__}, got other ones: {odd}")
    hints = get_type_hints(kind)
    return kind(**{name: from_json(hints[name], value[name], f"{where}.{name}") for name in names})


def _mismatch(where: str, expected: str, value: Any) -> ValueError:
    text = repr(value)
    return ValueError(f"{where}: expected {expected}, got {text if len(text) < 60 else text[:60] + '...'}")
