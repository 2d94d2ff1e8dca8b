"""`hpo export --pick`: one member of a front, copied from its export or still to be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpo.policy.front_members import FrontMember
from hpo.policy.pick import Pick
from hpo.store import search_results
from hpo.store.record import Record
from model.common.errors import ConfigError
from model.denoise import DenoiseError, verify_files
from model.export import copy_export


def pick_member(record: Record, pick: Pick) -> FrontMember | None:
    """The member that a rule picks: of the exported ones, or before these are chosen, of the front so far.

    Returns None for the winner of a search with one objective.

    Raises:
        ConfigError: No member fits, or there is none.
    """
    search = record.search
    if not search.is_multi_objective:
        if pick.rule == "best":
            return None
        raise ConfigError(
            f"pick={pick.text}: {record.name} has one objective, {search.objective}, and so only `best`; a search with "
            f"--objectives {search.objective},latency ends with a front"
        )
    members = search_results.current_members(record)
    if not members:
        raise ConfigError(f"{record.name}: no trial has a valid result yet")
    return pick.choose(members, search)


def copy_member(record: Record, member: FrontMember, to: Path) -> dict[str, Any] | None:
    """Copy a member's export, and return its manifest; None if it is not exported, or no longer whole.

    Raises:
        ConfigError, OSError: It cannot be written there.
    """
    if member.folder is None:
        return None
    folder = record.fetch(record.folder / member.folder)
    try:
        manifest: dict[str, Any] = verify_files(folder)
    except DenoiseError:
        return None
    copy_export(folder, to)
    return manifest
