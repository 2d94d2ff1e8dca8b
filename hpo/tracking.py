"""W&B: one run per trial, written offline by one thread in the driver. Trials never import wandb.

A run is drawn from the record: whatever a call did not log, the next one does, and a continued search writes a run
that was not closed again from its first epoch.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.decide import CONFIG
from hpo.record import Record
from hpo.results import best_report, reports_of

log = logging.getLogger(__name__)

PROJECT = "pix2pix-search"
_QUEUE_SIZE = 1_000
_CLOSE_SECONDS = 60
_TAGS = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class Tracker:
    """A listener. The search never waits for it: a full queue drops calls, and the next call makes up for them."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._finished_before = {t.number for t in record.trials() if self._marker(t.number).exists()}
        self._runs: dict[int, Any] = {}
        self._logged: dict[int, int] = {}
        self._queue: queue.Queue[FrozenTrial | None] = queue.Queue(_QUEUE_SIZE)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def changed(self, trial: FrozenTrial) -> None:
        """See Listener."""
        if trial.number in self._finished_before:
            return
        try:
            self._queue.put_nowait(trial)
        except queue.Full:
            log.debug("W&B lags behind; trial %d is logged later", trial.number)

    def close(self) -> None:
        """Log what is left and close every run."""
        self._queue.put(None)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            log.warning("W&B did not finish within %d s; the record of the search is complete", _CLOSE_SECONDS)

    def _work(self) -> None:
        os.environ.update(WANDB_DATA_DIR=str(self._record.folder / "wandb"), WANDB_ERROR_REPORTING="false")
        try:
            while (trial := self._queue.get()) is not None:
                self._log(trial)
            for trial in self._record.trials():  # what was dropped
                if trial.number not in self._finished_before:
                    self._log(trial)
            for run in self._runs.values():  # of unfinished trials: a continued search writes them again
                run.finish()
        except Exception:
            log.warning("W&B stopped; the search goes on without it", exc_info=True)
            while self._queue.get() is not None:
                pass

    def _log(self, trial: FrozenTrial) -> None:
        done, reports = self._logged.get(trial.number, 0), reports_of(trial)
        ended = trial.state.is_finished()
        if trial.number not in self._runs:
            if trial.number in self._logged:
                return  # ended and closed
            self._runs[trial.number] = self._open(trial)
        run = self._runs[trial.number]
        for report in reports[done:]:
            row = {
                "epoch": report.epoch,
                "images": report.images,
                "images_per_second": report.images_per_second,
                **report.curves(),
            }
            if report.epoch.bit_count() == 1 or (ended and report is reports[-1]):  # epochs 1, 2, 4, ... and the last
                row |= self._strip(trial.number, report.epoch)
            run.log(row)
        self._logged[trial.number] = len(reports)
        if ended:
            self._close(run, trial)
            del self._runs[trial.number]

    def _open(self, trial: FrozenTrial) -> Any:
        import wandb  # noqa: PLC0415 - seconds that a search without W&B need not pay

        run_id = self._run_id(trial.number)
        for fragment in self._fragments(run_id):
            shutil.rmtree(fragment)
        run = wandb.init(
            project=PROJECT,
            group=self._record.name,
            job_type="trial",
            id=run_id,
            name=f"{self._record.name}-{trial.number:05}",
            config={**trial.user_attrs[CONFIG], "search": self._record.name, "trial": trial.number},
            mode="offline",
            dir=self._record.folder,
            reinit="create_new",
            settings=wandb.Settings(
                init_timeout=10,
                finish_timeout=30,
                console="off",
                silent=True,
                x_disable_stats=True,
                disable_git=True,
                disable_code=True,
            ),
        )
        run.define_metric("epoch", hidden=True)
        for names in ("val/*", "train/*"):
            run.define_metric(names, step_metric="epoch")
        return run

    def _close(self, run: Any, trial: FrozenTrial) -> None:
        best = best_report(trial, self._record.search.objective)
        if best is not None:  # kept here: W&B's own summary="max" is wrong after a resumed run
            run.summary.update({"best/ssim": best.ssim, "best/psnr": best.psnr_db, "best/epoch": best.epoch})
        run.tags = (*(run.tags or ()), _TAGS[trial.state])
        run.finish(exit_code=1 if trial.state == TrialState.FAIL else 0)
        self._marker(trial.number).touch()

    def _strip(self, number: int, epoch: int) -> dict[str, Any]:
        import wandb  # noqa: PLC0415 - see _open

        path = self._record.trial_folder(number) / f"epoch-{epoch:04}.png"
        return {"val/strip": wandb.Image(str(path), caption="noisy | denoised | clean")} if path.exists() else {}

    def _run_id(self, number: int) -> str:
        return f"{self._record.id}-{number:05}"

    def _marker(self, number: int) -> Path:
        """Its existence means that the run is whole. Not inside the fragment, which `wandb sync --clean` deletes."""
        return self._record.folder / "wandb" / f"{self._run_id(number)}.whole"

    def _fragments(self, run_id: str) -> Sequence[Path]:
        return sorted((self._record.folder / "wandb").glob(f"offline-run-*-{run_id}"))
