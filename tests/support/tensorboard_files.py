"""TensorBoard's files, read back with TensorBoard's own reader."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from hpo.policy.leaderboard import reports_of
from hpo.store.file_names import FINAL
from hpo.store.record import Record
from hpo.tracking.tensorboard import FOLDER
from model.training_report import EvalReport

Status = api_pb2.Status


def hparams_page(folder: Path) -> dict[str, Any]:
    """Groups of sessions by name, as the page's server lists them: here each session is alone in its own."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(folder))
    runs.Reload()
    context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(folder))))
    wanted = api_pb2.ListSessionGroupsRequest(allowed_statuses=api_pb2.Status.values(), slice_size=100)
    listed = list_session_groups.Handler(RequestContext(), context, "", wanted).run()
    return {group.name: group for group in listed.session_groups}


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
        measured = [(r.epoch, r.haarpsi) for r in told if not math.isnan(r.haarpsi)]  # not in a diverged epoch
        assert found.pop("val/haarpsi", []) == [(epoch, pytest.approx(value)) for epoch, value in measured]
        assert found.keys() == expected.keys()
        for tag, values in expected.items():
            assert [step for step, _ in found[tag]] == list(range(1, len(told) + 1))
            assert [value for _, value in found[tag]] == pytest.approx(values, nan_ok=True)
