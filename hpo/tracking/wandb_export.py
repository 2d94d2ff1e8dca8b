"""What the W&B run of an export has beside curves: leaderboard, pictures, metrics and the generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import wandb

from hpo.policy import leaderboard
from hpo.store import search_results
from hpo.store.file_names import EXPORT
from hpo.store.record import Record
from hpo.tracking.wandb_runs import STRIP_COLUMNS, picture_path
from hpo.views.formatting import collapse_message
from model.export import STRIP_FILE
from model.training_files import strip_name

ALIASES = ("best", "candidate")  # of the exported generator
_PICTURED_TRIALS = 10


def tables(record: Record, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the leaderboard and the pictures of the exported generator and of the best trials."""
    rows = leaderboard.leaderboard(record.trials(), record.search.objective)
    params = sorted({name for row in rows for name in row["params"]})
    columns = [name for name in rows[0] if name not in ("params", "known")]
    known = sorted({name for row in rows for name in row["known"]})
    several = record.search.is_multi_objective
    front = leaderboard.front(record.trials(), record.search) if several else []
    data = [
        [row[name] for name in columns]
        + [row["known"].get(name) for name in known]
        + ([row["number"] in front] if several else [])
        + [row["params"].get(name) for name in params]
        for row in rows
    ]
    names = [*columns, *(f"known/{name}" for name in known), *(["on the front"] if several else []), *params]
    board = wandb.Table(columns=names, data=data)
    return {"leaderboard": board, "samples": _samples(record, manifest, rows[:_PICTURED_TRIALS])}


def _samples(record: Record, manifest: Mapping[str, Any], rows: list[dict[str, Any]]) -> Any:
    split = "validation" if manifest["metrics"]["test"] is None else "test"
    measured = manifest["metrics"][split]["denoised"]
    table = wandb.Table(columns=["what", "ssim", "psnr_db", "columns", "picture"])
    exported = wandb.Image(str(record.folder / EXPORT / STRIP_FILE))
    psnr_db = float(measured["psnr_db"])
    table.add_data(f"exported, {split}", measured["ssim"], psnr_db, "noisy | clean | denoised", exported)
    for row in rows:
        if path := picture_path(record.fetch(record.trial_folder(row["number"]) / strip_name(row["epochs"]))):
            table.add_data(f"trial {row['number']}", row["ssim"], row["psnr_db"], STRIP_COLUMNS, wandb.Image(path))
    return table


def summary(record: Record, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The exported file's metrics, and what happened to the final training if it collapsed."""
    values: dict[str, Any] = {
        f"{split}/{what}/{name}": float(value)
        for split, table in manifest["metrics"].items()
        for what, row in (table or {}).items()
        if isinstance(row, Mapping)
        for name, value in row.items()
    }
    if collapses := search_results.collapses(record):
        values["final/collapses"] = len(collapses)
        values["final/what_happened"] = "\n".join(map(collapse_message, collapses))
    return values


def log_generator(record: Record, manifest: Mapping[str, Any], run: Any, seconds: float | None) -> None:
    """Log the export folder as an artifact, and wait for its upload if `seconds` are given."""
    artifact = wandb.Artifact(
        f"{record.name}-{record.id}",  # with the ID: searches of one name may share a project, but not versions
        type="model",
        metadata={name: manifest[name] for name in ("origin", "model", "config", "data", "metrics")},
    )
    artifact.add_dir(str(record.folder / EXPORT), skip_cache=True)
    run.log_artifact(artifact, aliases=list(ALIASES))
    if seconds is not None:
        artifact.wait(timeout=int(seconds))
