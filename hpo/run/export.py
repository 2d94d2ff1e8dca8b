"""Exports the winner of a search, or the best checkpoint of one trial."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from hpo.policy.leaderboard import candidates
from hpo.run.certificate import certificate, note_test_read, reads_before
from hpo.store.file_names import EXPORT, FINAL
from hpo.store.record import Record
from hpo.store.search_results import extent, final_wins, ranked_finalists, winner
from model.checkpoint import CheckpointError, load_checkpoint
from model.common.errors import ConfigError
from model.data.data_config import DataConfig
from model.data.image_sets import Images
from model.data.memory_mapped import PixelFiles
from model.export import export
from model.quantization import NetworkOptions, Precision
from model.training_files import BEST


def export_winner(
    record: Record,
    images: Images,
    *,
    is_over: bool,
    data: DataConfig | None = None,
    trial: int | None = None,
    destination: Path | None = None,
    trainable: bool = False,
    network: NetworkOptions | None = None,
    is_driver: bool = False,
) -> dict[str, Any]:
    """Write the best checkpoint of the winner, or of one trial, as a folder to deploy; return the manifest.

    Args:
        is_over: Whether the search is over; only then the model is measured on the test images.
        data: Where the images are now, if they have moved.
        destination: Folder to write; None: see default_folder.
        trainable: Whether the export also has what a later training needs.
        network: The precision of the ONNX file, and how its latency is measured; None: see network_options.
        is_driver: Whether the caller may write the record, so that reading the test images is counted.

    Raises:
        ConfigError: There is nothing to export, or the precision costs more than it may.
        CheckpointError: The checkpoint is damaged; the message names the next best trial.
        ExportError, OSError: The export failed.
    """
    number = winner(record) if trial is None else record.trial(trial).number
    if number is None:
        raise ConfigError(f"{record.name}: no trial has a valid result yet")
    if trial is not None:
        check_kept(record, trial)
    network = network or network_options(record)
    final = trial is None and final_wins(record)
    folder = record.folder / FINAL if final else record.trial_folder(number)
    data = data or record.search.data_config()
    origin = {"search": record.name, "search_id": record.id, "trial": number, "final_training": final}
    before = reads_before(record)
    if is_over and is_driver:
        note_test_read(record, number)
    with PixelFiles(record.folder.parent, record.name) as pixel_files:
        test = data.load_test(pixel_files) if is_over else None
    exported = {"trial": number, "final_training": final, "sha256": _digest(record, folder / BEST)}
    try:
        return export(
            record.fetch(folder / BEST),
            destination or default_folder(record, network.precision),
            data=data,
            images=images,
            test=test,
            origin={**origin, **extent(record)},
            trainable=trainable,
            network=network,
            certificate=certificate(
                record, images, exported, test_images=None if test is None else len(test), reads_before=before
            ),
        )
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_next_best(record, None if final else number)}") from error


def _next_best(record: Record, damaged: int | None) -> str:
    """Where a checkpoint is damaged: what can be exported instead."""
    by_rank = dict.fromkeys([*ranked_finalists(record), *candidates(record.trials())])
    best = next((number for number in by_rank if number != damaged and _is_intact(record, number)), None)
    return "no other trial has an intact one" if best is None else f"the next best: --trial {best}"


def network_options(record: Record, precision: Precision = "fp32", max_loss_db: float | None = None) -> NetworkOptions:
    """A precision, and the latency as the search measures it. Raises ConfigError."""
    size, threads = record.search.latency_size, record.search.latency_threads
    return NetworkOptions(precision=precision, max_loss_db=max_loss_db, latency_size=size, latency_threads=threads)


def default_folder(record: Record, precision: str) -> Path:
    """Where an export is written by default; one of a smaller precision leaves the search's own as it is."""
    return record.user_folder / (EXPORT if precision == "fp32" else f"{EXPORT}-{precision}")


def _digest(record: Record, path: Path) -> str | None:
    """The SHA-256 of a checkpoint's file; None if it is missing, which the export reports."""
    found = record.fetch(path)
    return hashlib.sha256(found.read_bytes()).hexdigest() if found.exists() else None


def _is_intact(record: Record, number: int) -> bool:
    """Return whether a trial's best checkpoint exists and is undamaged."""
    path = record.trial_folder(number) / BEST
    if not record.has_file(path):
        return False
    try:
        load_checkpoint(record.fetch(path))
    except CheckpointError:
        return False
    return True


def check_kept(record: Record, number: int) -> None:
    """Raise ConfigError if a trial has no best checkpoint; the message names the trials that have one."""
    if record.fetch(record.trial_folder(number) / BEST).exists():
        return
    available = [trial.number for trial in record.trials() if record.has_file(record.trial_folder(trial.number) / BEST)]
    reason = "was deleted" if record.trial(number).state.is_finished() else "does not exist yet"
    raise ConfigError(
        f"trial={number}: its checkpoint {reason}. {record.name} has those of trials "
        f"{', '.join(map(str, available)) or '(none)'}; of ended trials the best {record.search.keep_checkpoints} are "
        "kept (--keep-checkpoints)"
    )
