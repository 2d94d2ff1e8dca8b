"""The search.json of a search, and the folders that have one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import search_spaces
from hpo.policy import user_files
from hpo.policy.search_config import CHANGEABLE, SEARCH_FILE, SearchConfig, is_name
from hpo.store import integrity
from hpo.store.file_names import LOCK_FILE, STUDY_FILE
from model.common.errors import ConfigError, MachineError
from model.common.text import did_you_mean


class RecordError(MachineError):
    """A record cannot be read, or another process is writing it."""


class DamagedError(RecordError):
    """A record is not what was written; another copy of it may be whole."""


def read_about(content: bytes, path: object) -> dict[str, Any]:
    """Parse a search.json, its configuration unchecked. path: for the message. Raises DamagedError."""
    try:
        about: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: damaged ({error})") from error
    if problem := integrity.search_file_problem(about):
        raise DamagedError(f"{path}: damaged ({problem})")
    return about


def parse_search_file(content: bytes, path: object) -> tuple[dict[str, Any], SearchConfig]:
    """Parse a search.json, with its configuration. path: for the message. Raises DamagedError."""
    about = read_about(content, path)
    try:
        return about, SearchConfig.from_dict(about["search"])
    except (ConfigError, TypeError) as error:  # TypeError: fields of another version
        raise DamagedError(f"{path}: damaged ({error})") from error


def check_compatible(name: str, about: Mapping[str, Any], search: SearchConfig, options: Mapping[str, Any]) -> None:
    """Check that an existing search can be continued with the options that the user gave. Raises ConfigError with each
    difference. about: the search's search.json."""
    existing = search.as_dict()
    files: Mapping[str, str] = about.get("files", {})  # digests by option; a file may move, but not change
    may_change = CHANGEABLE | {option for option in files if str(options.get(option)).endswith(".py")}
    refused = [
        option
        for option in existing
        if options.get(option, existing[option]) != existing[option] and option not in may_change
    ]
    differences = [f"  {option}: it has {existing[option]}, not {options[option]}" for option in refused]
    for option, digest in files.items():
        path = options.get(option, existing[option])
        if user_files.digest(path) not in (digest, None):  # None: hpo.policy.user_files reports a missing file
            differences.append(f"  {option}: {path} is not the file that it began with (SHA-256 {digest[:12]}...)")
    if not refused:
        space = search_spaces.load(str(options.get("space", existing["space"])))
        differences += [f"  space: {line}" for line in space.differences(about["space"], search.base_config())]
    if differences:
        raise ConfigError(
            f"{name}: this search exists, and its trials could no longer be compared:\n"
            + "\n".join([*differences, "Leave these options out to continue it, or choose another name."])
        )


_LEFTOVERS = {STUDY_FILE, f"{STUDY_FILE}-journal", LOCK_FILE}  # of a driver that was killed before search.json


def check_free(folder: Path) -> None:
    """Raises ConfigError if a new search would share a user's file or folder, which `hpo rm` would delete."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; choose another name, or another folder with --runs")
    others = [path.name for path in folder.glob("*") if path.name not in _LEFTOVERS and path.name[0] != "."]
    if others:
        raise ConfigError(
            f"{folder}: is a folder with other things in it, such as {min(others)}; choose another name, or another "
            "folder with --runs"
        )


def list_names(runs: Path) -> list[str]:
    """The searches in a folder."""
    return sorted(path.parent.name for path in runs.glob(f"*/{SEARCH_FILE}") if is_name(path.parent.name))


def not_found(runs: Path, name: str) -> ConfigError:
    """The error for a search that is not in a folder, with the nearest name."""
    return not_found_in(str(runs), name, list_names(runs))


def not_found_in(place: str, name: str, names: list[str]) -> ConfigError:
    """The error for a search that is not in a place, with the nearest of its names."""
    hint = did_you_mean(name, names) if names else "There are none yet; `hpo search NAME` starts one."
    return ConfigError(f"{name}: no such search in {place}. {hint}")
