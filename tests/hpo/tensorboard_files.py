"""TensorBoard's files, read back with TensorBoard's own reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hpo.record import Record
from hpo.results import FINAL, reports_of
from hpo.tensorboard import FOLDER
from model.metrics import EvalReport


def curves_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value by tag."""
    reader = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def assert_all_there(record: Record, final: Sequence[EvalReport] = ()) -> None:
    """One run for each trial, and one for a final training, with each value of every epoch once."""
    reports = {f"{trial.number:05}": reports_of(trial) for trial in record.trials()}
    if final:
        reports[FINAL] = final
    folder = record.folder / FOLDER
    assert {path.name for path in folder.iterdir()} == reports.keys()
    for run, told in reports.items():
        found = curves_in(folder / run)
        expected = {
            "val/ssim": [r.ssim for r in told],
            "val/psnr": [r.psnr_db for r in told],
            "val/l1": [r.l1 for r in told],
            "train/gen_total": [r.gen_total for r in told],
            "train/gen_adversarial": [r.gen_adversarial for r in told],
            "train/gen_reconstruction": [r.gen_reconstruction for r in told],
            "train/disc_real": [r.disc_real for r in told],
            "train/disc_generated": [r.disc_generated for r in told],
        }
        assert found.keys() == expected.keys()
        for tag, values in expected.items():
            assert [step for step, _ in found[tag]] == list(range(1, len(told) + 1))
            assert [value for _, value in found[tag]] == pytest.approx(values, nan_ok=True)
