"""The options of a search as the user typed them -> the fields of SearchConfig."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from hpo.cli.arguments import option_name
from hpo.cli.messages import say
from hpo.policy.former_names import FORMER_NAMES, renamed
from hpo.policy.search_config import OPTIONS
from model.common.errors import ErrorCollector
from model.config import parse_setting

_MAY_BE_FILES = ("space", "sampler", "pruner")


def read_search_options(arguments: argparse.Namespace, errors: ErrorCollector) -> dict[str, Any]:
    """The options that were given, by the names of SearchConfig's fields; paths are absolute."""
    typed = {name: value for name, value in vars(arguments).items() if name in OPTIONS or name in FORMER_NAMES}
    _report_former_names(typed, errors)
    options = renamed(typed)
    if "set" in options:
        options["set"] = _parse_settings(options["set"], errors)
    for name in _MAY_BE_FILES:
        if options.get(name, "").endswith(".py"):
            options[name] = os.path.realpath(os.path.expanduser(options[name]))
    if "data" in options:
        options["data"] = absolute_data(options["data"])
    for name in ("objectives", "limit"):
        if isinstance(words := options.get(name), str):
            options[name] = tuple(word.strip() for word in words.split(","))
        elif words is not None:
            options[name] = tuple(words)
    if "range" in options:
        options["range"] = tuple(options["range"])
    return options


def absolute_data(data: str) -> str:
    """The absolute path of a folder; a search is perhaps continued from another folder. Anything else as it is."""
    folder = os.path.expanduser(data)
    return os.path.realpath(folder) if os.path.exists(folder) else data


def _report_former_names(typed: dict[str, Any], errors: ErrorCollector) -> None:
    """Say what an option is called now. Remove those that were given by both names, which is an error."""
    for former, name in FORMER_NAMES.items():
        now = option_name(name)
        if former in typed and name in typed:
            errors.add(f"{former}={typed.pop(former)}: is the former name of {now}; give only {now}")
        elif former in typed:
            say(f"hpo: {option_name(former)} is called {now} now")


def _parse_settings(pairs: Sequence[str], errors: ErrorCollector) -> dict[str, Any]:
    """Values by name, of the valid ones among repeated NAME=VALUE."""
    settings: dict[str, Any] = {}
    for name, value in filter(None, (errors.attempt(parse_setting, pair) for pair in pairs)):
        if settings.setdefault(name, value) != value:
            errors.add(f"{name}: set twice, to {settings[name]} and {value}")
    return settings
