"""`hpo pull`: the best model so far, from a cluster's head to this machine."""

from __future__ import annotations

import shlex
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpo.cluster import cluster_config
from hpo.policy.pick import Pick
from hpo.policy.search_config import check_name
from hpo.remote.ssh import HeadError, connect_to_head
from model.common.errors import ConfigError, ErrorCollector
from model.export import check_target, replace_folder
from model.export_quality import verify_export


def pull(path: Path, name: str, to: Path, *, pick: str | None = None) -> dict[str, Any]:
    """Export the winner so far on the head, or the member of a front that the rule `pick` chooses, download it, verify
    it and return its manifest.

    `to` appears complete or not at all.

    Raises:
        ConfigError: the search has no winner yet, or `to` has other files.
        DenoiseError: the export is damaged, or does not behave on this machine as on the head.
        HeadError, OSError
    """
    errors = ErrorCollector()
    errors.attempt(check_name, name)
    config = errors.attempt(cluster_config.read_checked, path)
    errors.attempt(check_target, to)
    if pick is not None:
        errors.attempt(Pick.parse, pick)
    if errors or config is None:
        raise errors.as_error()
    to.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent) as folder,
        connect_to_head(path, config) as head,
    ):
        remote = head.run("mktemp -d").strip()
        try:
            what = "the winner so far and measures it" if pick is None else f"the member of the front for {pick}"
            print(f"{name}: {head.address} exports {what} ...", file=sys.stderr)
            chosen = "" if pick is None else f" --pick {shlex.quote(pick)}"
            head.run(f"hpo export {shlex.quote(name)} --to {remote}/export{chosen}")
            local = Path(folder) / "export"
            head.download(f"{remote}/export/", local)
        finally:
            with suppress(HeadError, ConfigError):
                head.run(f"rm -rf {remote}")
        manifest = verify_export(local)
        replace_folder(to, local)
    return manifest
