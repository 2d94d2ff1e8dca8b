"""Whether values from a file or a command line fit the fields of a dataclass."""

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


_MOST = 2**63  # what 64 bits hold: databases and generators of random numbers take no more


def matches_type(value: Any, kind: Any) -> bool:
    """Whether a value out of a file or a command line may stand in a field of that type. A whole number is a number,
    too; true is none."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(matches_type(value, each) for each in get_args(kind))
    if get_origin(kind) is tuple and isinstance(value, list | tuple):  # of JSON they are lists
        return len(value) == len(get_args(kind)) and all(map(matches_type, value, get_args(kind)))
    if kind is types.NoneType:
        return value is None
    if kind in (int, float):
        is_whole = isinstance(value, int) and not isinstance(value, bool) and -_MOST < value < _MOST
        return is_whole or (kind is float and isinstance(value, float))
    return isinstance(value, get_origin(kind) or kind)


def type_rule(kind: Any) -> str:
    """The same, to be told."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if isinstance(kind, types.UnionType):
        return " or ".join(type_rule(each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        return " and ".join(type_rule(each) for each in get_args(kind))
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
    """Of what a file has for the fields of a dataclass: what is missing, unknown or of another type, a line each."""
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
