"""Exports the winner of a search, or the best checkpoint of one trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpo.policy.leaderboard import candidates
from hpo.store.layout import EXPORT, FINAL
from hpo.store.record import Record
from hpo.store.search_results import final_wins, ranked, winner
from model.checkpoint import CheckpointError, load_checkpoint
from model.common.errors import ConfigError
from model.data.data_config import DataConfig
from model.data.image_sets import Images
from model.data.memory_mapped import PixelFiles
from model.export import export
from model.run_layout import BEST


def export_winner(
    record: Record,
    images: Images,
    *,
    over: bool,
    data: DataConfig | None = None,
    trial: int | None = None,
    to: Path | None = None,
    trainable: bool = False,
) -> dict[str, Any]:
    """The winner's best checkpoint, or that of a trial, as a deployable folder; gives its manifest.

    over: whether the search is, so that the test images may be looked at. data: where they have moved to. Raises
    ConfigError where there is nothing to export, CheckpointError, ExportError, OSError.
    """
    number = winner(record) if trial is None else record.trial(trial).number
    if number is None:
        raise ConfigError(f"{record.name}: no trial has a valid result yet")
    if trial is not None:
        check_kept(record, trial)
    final = trial is None and final_wins(record)
    folder = record.folder / FINAL if final else record.trial_folder(number)
    data = data or record.search.data_config()
    origin = {"search": record.name, "search_id": record.id, "trial": number, "final_training": final}
    with PixelFiles(record.folder.parent, record.name) as store:
        test = data.load_test(store) if over else None
    try:
        return export(
            record.fetch(folder / BEST),
            to or record.user_folder / EXPORT,
            data=data,
            images=images,
            test=test,
            origin={**origin, **extent(record)},
            trainable=trainable,
        )
    except CheckpointError as error:
        best = next((n for n in _by_rank(record) if (final or n != number) and _is_whole(record, n)), None)
        other = "no other trial has one that is whole" if best is None else f"the next best: --trial {best}"
        raise CheckpointError(f"{error}; {other}") from error


def _by_rank(record: Record) -> list[int]:
    """All candidates, the finalists first."""
    return list(dict.fromkeys([*ranked(record), *candidates(record.trials(), record.search.objective)]))


def _is_whole(record: Record, number: int) -> bool:
    """Whether a trial's best checkpoint is there and undamaged."""
    path = record.trial_folder(number) / BEST
    if not record.has_file(path):
        return False
    try:
        load_checkpoint(record.fetch(path))
    except CheckpointError:
        return False
    return True


def check_kept(record: Record, number: int) -> None:
    """Raises ConfigError, naming the trials that have one, where a trial's best checkpoint is not there."""
    if record.fetch(record.trial_folder(number) / BEST).exists():
        return
    have = [trial.number for trial in record.trials() if record.has_file(record.trial_folder(trial.number) / BEST)]
    why = "was let go" if record.trial(number).state.is_finished() else "is not there yet"
    raise ConfigError(
        f"trial={number}: its checkpoint {why}. {record.name} has those of trials "
        f"{', '.join(map(str, have)) or '(none)'}; of ended trials the best {record.search.keep_checkpoints} are kept (--keep-checkpoints)"
    )


def extent(record: Record) -> dict[str, int]:
    """What an export was chosen from."""
    return {"trials": len(record.trials()), "final_epochs": record.search.final_epochs}
