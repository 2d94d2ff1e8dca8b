"""Helpers to look into a parsed cluster file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

MARKET, PRICE = "ray.io/market-type", "hpo/usd-per-hour"  # labels of node types
TOKEN_FILE = "auth_token"
UNFILLED = "REPLACE"
SETUP_COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")

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
    found = []
    for where, text in command_strings(config):
        if where.startswith(among or "setup_commands"):
            quoted = re.findall(rf"([\"']){name}=(.*?)\1", text)
            bare = re.findall(rf"(?<![\w\"']){name}=([^\s\"';&|]+)", text)
            found += [value for _, value in quoted] + bare
    return found


def mapping_at(config: Config, key: str) -> Config:
    """A mapping inside the file; empty if there is none."""
    value = config.get(key) if isinstance(config, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def is_token_mount(remote: Any) -> bool:
    """Whether a target of `file_mounts` is the folder where Ray reads its token."""
    return str(remote).rstrip("/").endswith("/.ray")
