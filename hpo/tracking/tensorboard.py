"""TensorBoard files: losses and metrics of each training, and the HParams page, from the driver's reports.

They are written by tensorboardX, which Ray Tune needs anyway; torch's own writer needs all of TensorBoard. Its
SummaryWriter is not used, because that writes in a thread, which loses the errors of a full disk.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from tensorboardX import RecordWriter
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

from hpo.policy.leaderboard import DEAD, outcome_of, reports_of
from hpo.store.file_names import FINAL
from hpo.store.record import Record
from model.checkpoint import load_checkpoint
from model.training_files import LAST
from model.training_report import EvalReport

FOLDER = "tensorboard"


class Events:
    """The events of one training, in a folder of their own.

    A continued training writes its file again from the start. Each event keeps its length, so no event is missing or
    doubled, and an open TensorBoard reads on at its place. All methods raise OSError.

    Args:
        began: its start in seconds since 1970, from which the wall times are counted. None takes the time of the first
            `write`, less the seconds of its reports.
    """

    def __init__(self, folder: Path, began: float | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._time, self._written = began, 0
        self._writer = RecordWriter(str(folder / "events.out.tfevents"))
        self._put(0, file_version="brain.Event:2")

    def write(self, reports: Sequence[EvalReport], *, flush: bool = True) -> None:
        """Add those of all reports so far that are new. Without `flush` they reach the disk when the file is closed."""
        if self._time is None:
            self._time = time.time() - sum(report.seconds + report.eval_seconds for report in reports)
        for report in reports[self._written :]:
            self._time += report.seconds + report.eval_seconds
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in report.curves().items()]
            self._put(report.epoch, summary=Summary(value=values))
        self._written = len(reports)
        if flush:
            self._writer.flush()

    def begin(self, params: Mapping[str, Any]) -> None:
        """Add the training's row to the HParams page."""
        start = SessionStartInfo(start_time_secs=self._time)
        for name, value in params.items():
            kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
            setattr(start.hparams[name], kind, value)
        self._put_hparams("session_start_info", start)

    def end(self, *, failed: bool) -> None:
        """Add its success or failure to the HParams page, and close the file."""
        status = Status.STATUS_FAILURE if failed else Status.STATUS_SUCCESS
        self._put_hparams("session_end_info", SessionEndInfo(status=status, end_time_secs=self._time))
        self.close()

    def close(self) -> None:
        self._writer.close()

    def _put_hparams(self, kind: str, info: Any) -> None:
        content = HParamsPluginData(**{kind: info}).SerializeToString()
        plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content)
        value = Summary.Value(tag=f"_hparams_/{kind}", metadata=SummaryMetadata(plugin_data=plugin))
        self._put(0, summary=Summary(value=[value]))

    def _put(self, step: int, **content: Any) -> None:
        event = Event(wall_time=self._time or time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())


class TensorBoard:
    """A listener that writes trial 12 to the run 00012, and the final training to the run final."""

    def __init__(self, record: Record) -> None:
        self._folder = record.folder / FOLDER
        self._open: dict[str, Events] = {}

    def on_trial_update(self, trial: FrozenTrial) -> None:
        """See Listener. Raises OSError."""
        run = _run(trial)
        if run not in self._open:
            assert trial.datetime_start is not None
            self._open[run] = Events(self._folder / run, trial.datetime_start.timestamp())
            self._open[run].begin(trial.params)
        # A continued search writes a file for every ended trial, which would take 13 ms each with a flush.
        self._open[run].write(reports_of(trial), flush=not trial.state.is_finished())
        if trial.state.is_finished():
            self._open.pop(run).end(failed=outcome_of(trial) in ("failed", *DEAD))

    def final(self, reports: Sequence[EvalReport]) -> None:
        """Write all reports of the final training so far. Raises OSError."""
        if FINAL not in self._open:
            self._open[FINAL] = Events(self._folder / FINAL)
        self._open[FINAL].write(reports)

    def close(self) -> None:
        """See Listener."""
        for events in self._open.values():
            events.close()


def _run(trial: FrozenTrial) -> str:
    return f"{trial.number:05}"


def draw_finished(record: Record) -> None:
    """Write the files of a search that is over, unless they are complete. Raises OSError, CheckpointError."""
    trials, final_epochs = record.trials(), record.search.final_epochs
    if (record.folder / FOLDER / (FINAL if final_epochs else _run(trials[-1]))).exists():
        return
    board = TensorBoard(record)
    for trial in trials:
        board.on_trial_update(trial)
    if final_epochs:
        _, state = load_checkpoint(record.fetch(record.folder / FINAL / LAST))
        board.final([EvalReport.from_dict(report) for report in state["reports"]])
    board.close()
