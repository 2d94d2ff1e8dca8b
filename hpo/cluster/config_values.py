"""Helpers to look into a parsed cluster file, and the members of EC2's RunInstances, as botocore describes them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

MARKET, PRICE = "ray.io/market-type", "hpo/usd-per-hour"  # labels of node types
TOKEN_FILE = "auth_token"
UNFILLED = "REPLACE"
SETUP_COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")

_RAY_MEMBERS = ("SubnetIds",)  # members of a node_config that are Ray's

Config = Mapping[str, Any]


def strings(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every string, keys with UNFILLED included, and its path."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            place = f"{where}.{key}" if where else str(key)
            yield from ((place, str(key)),) if UNFILLED in str(key) else ()
            yield from strings(inner, place)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from strings(inner, f"{where}[{index}]")


def odd_keys(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Keys that are not text, and their paths: YAML reads numbers, dates and `on` as what they look like."""
    inner = dict(enumerate(value)) if isinstance(value, list) else value
    for key, part in inner.items() if isinstance(inner, dict) else ():
        if isinstance(value, dict) and not isinstance(key, str):
            yield where, key
        yield from odd_keys(part, f"{where}.{key}" if where else str(key))


def command_strings(config: Config) -> Iterator[tuple[str, str]]:
    """Every command and its path."""
    for where, text in strings(config):
        if "_commands[" in where:
            yield where, text


def assigned_values(config: Config, name: str, *among: str) -> list[str]:
    """Values that commands give to an environment variable, by "NAME=value" or NAME=value. among: lists of commands; by
    default those that every node runs."""
    values = []
    for where, text in command_strings(config):
        if where.startswith(among or "setup_commands"):
            quoted = re.findall(rf"([\"']){name}=(.*?)\1", text)
            bare = re.findall(rf"(?<![\w\"']){name}=([^\s\"';&|]+)", text)
            values += [value for _, value in quoted] + bare
    return values


def mapping_at(config: Config, key: str) -> Config:
    """A mapping inside the file; empty if it is missing."""
    value = config.get(key) if isinstance(config, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def is_token_mount(remote: Any) -> bool:
    """Whether a target of `file_mounts` is the folder where Ray reads its token."""
    return str(remote).rstrip("/").endswith("/.ray")


@functools.cache  # 0.2 s
def instance_shape() -> Any | None:
    """The description of RunInstances; None where boto3 is not installed."""
    try:
        from botocore.session import get_session  # noqa: PLC0415 - an optional package
    except ImportError:
        return None
    return get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def unknown_members(given: Any, shape: Any, where: str = "") -> Iterator[tuple[str, str, list[str]]]:
    """Every member that EC2 does not know: its path, its name, and the members that it knows at this place."""
    if shape.type_name == "structure" and isinstance(given, Mapping):
        members = [*shape.members, *(() if where else _RAY_MEMBERS)]
        for key, value in given.items():
            if key not in members:
                yield where, str(key), members
            elif key in shape.members:
                yield from unknown_members(value, shape.members[key], f"{where}{key}.")
    elif shape.type_name == "list" and isinstance(given, list):
        for value in given:
            yield from unknown_members(value, shape.member, where)
