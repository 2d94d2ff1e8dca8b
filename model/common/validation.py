"""Checks values from a file or a command line against the types of a dataclass's fields."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .text import truncated_repr


@functools.cache  # a millisecond, for each of the many configurations that a suggestion tries
def field_types(of: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    return get_type_hints(of)


_MAX_INT = 2**63  # databases and random number generators take 64 bits


def matches_type(value: Any, kind: Any) -> bool:
    """Whether a value fits a type. An int fits a float; a bool fits neither."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(matches_type(value, each) for each in get_args(kind))
    if get_origin(kind) is tuple and isinstance(value, list | tuple):  # of JSON they are lists
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        return len(value) == len(kinds) and all(map(matches_type, value, kinds))
    if kind is types.NoneType:
        return value is None
    if kind in (int, float):
        is_whole = isinstance(value, int) and not isinstance(value, bool) and -_MAX_INT < value < _MAX_INT
        return is_whole or (kind is float and isinstance(value, float))
    return isinstance(value, get_origin(kind) or kind)


def type_rule(kind: Any) -> str:
    """The rule of matches_type, for a message."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis:
        return f"a list, each of it {type_rule(get_args(kind)[0])}"
    if isinstance(kind, types.UnionType) or get_origin(kind) is tuple:
        word = " or " if isinstance(kind, types.UnionType) else " and "
        return word.join(map(type_rule, get_args(kind)))
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        types.NoneType: "None",
        Mapping: "a mapping",
    }
    return names[get_origin(kind) or kind]


def wrong_fields(of: type, values: Any) -> list[str]:
    """A message for each field of a dataclass that is missing, unknown or of another type in `values`."""
    if not isinstance(values, Mapping):
        return [f"{truncated_repr(values)}: must be a mapping"]
    fields = {field.name: field for field in dataclasses.fields(of)}
    none = dataclasses.MISSING
    needed = [name for name, field in fields.items() if field.default is none and field.default_factory is none]
    return [
        *(f"{name}: is missing" for name in needed if name not in values),
        *(f"{name}: no such field" for name in values if name not in fields),
        *(
            f"{name}={truncated_repr(values[name])}: must be {type_rule(kind)}"
            for name, kind in field_types(of).items()
            if name in values and not matches_type(values[name], kind)
        ),
    ]
