"""A search as runs in W&B, made from its record: in files, or on a server. What W&B has already is left out.

A run's rows are its epochs, so the number of rows that a server has says which epoch is next. Calls block, and raise
what W&B raises: do not make them in the thread that runs the search.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from optuna.trial import FrozenTrial

from hpo.policy import leaderboard
from hpo.policy.leaderboard import best_report, reports_of
from hpo.policy.objectives import is_known_before_training
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import CONFIG, KNOWN
from hpo.store.file_names import EXPORT, FINAL, REPLICATES
from hpo.store.record import Record
from model.checkpoint import load_checkpoint
from model.data.image_formats import ImageError
from model.data.image_reading import read_image
from model.denoise import verify_files
from model.training_files import LAST, should_log_images, strip_name
from model.training_report import EvalReport

log = logging.getLogger(__name__)

PROJECT = "pix2pix-search"
INIT_SECONDS = 10.0  # for a server to answer
STRIP_COLUMNS = "noisy | denoised | clean"
_ROWS_QUERY = """query SearchRunRows($entity: String!, $project: String!, $run: String!) {
  project(name: $project, entityName: $entity) { run(name: $run) { historyLineCount } } }"""


def picture_path(path: Path) -> str | None:
    """The picture's path if W&B may open it, else None. W&B itself opens more formats than are safe."""
    try:
        read_image(path)
    except ImageError:
        return None
    return str(path)


def _scatter(search: SearchConfig) -> dict[str, str]:
    """The names in W&B of the first trained objective, and of the others against which it is drawn."""
    names = {name: f"{'known' if is_known_before_training(name) else 'best'}/{name}" for name in search.objectives}
    first = names.pop(search.objective)
    return dict.fromkeys(names.values(), first) if search.objective != "balanced" else {}


@dataclass
class _OpenRun:
    run: Any  # W&B's
    rows: int


@dataclass
class WandbRuns:
    """One run for each trial, and one for each export. Only one thread may use it."""

    record: Record
    online: bool  # log to the server instead of files
    finish_seconds: float  # how long the end of a run may take to send the rest of it
    url: str | None = None  # of the runs' page, once a run was opened online
    sent: int = 0  # runs that this object has completed
    _open: dict[int, _OpenRun] = field(default_factory=dict)
    _unconfirmed: list[_OpenRun] = field(default_factory=list)  # ended, but the server had not counted all rows yet

    def __post_init__(self) -> None:
        folder = self.record.folder / "wandb"
        os.environ.update(WANDB_DATA_DIR=str(folder), WANDB_ERROR_REPORTING="false", WANDB_SILENT="true")

    def log(self, trial: FrozenTrial) -> None:
        """Log what the run of a trial lacks, and close the run if the trial has ended."""
        number, ended = trial.number, trial.state.is_finished()
        if self._is_complete(self._run_id(number)):
            return
        if number not in self._open:
            config = {**trial.user_attrs[CONFIG], "search": self.record.name, "trial": number}
            self._open[number] = self._begin(self._run_id(number), f"{number:05}", "trial", config)
        opened = self._open[number]
        self._log_epochs(opened, reports_of(trial), self.record.trial_folder(number), ended=ended)
        if ended:
            del self._open[number]
            best = best_report(trial, self.record.search.objective)
            if best is not None:  # W&B's own summary="max" is wrong after a resumed run
                values = {name.replace("val/", "best/"): value for name, value in best.validation_curves().items()}
                opened.run.summary.update({**values, "best/epoch": best.epoch})
            if known := trial.user_attrs.get(KNOWN):
                opened.run.summary.update({f"known/{name}": value for name, value in known.items()})
            outcome = leaderboard.outcome_of(trial)
            opened.run.tags = tuple(dict.fromkeys((*(opened.run.tags or ()), outcome.replace("finished", "complete"))))
            self._end(opened, failed=outcome in ("failed", *leaderboard.DEAD))  # W&B calls all others finished

    def log_all(self, trials: Sequence[FrozenTrial], *, exported: bool) -> None:
        """Log what the server lacks of the trials and of the export, and close all runs."""
        for trial in trials:
            self.log(trial)
        if exported:
            self.log_export()
        self.close()

    def log_export(self) -> None:
        """Log the run of the export: the final training's curve, the leaderboard, pictures and the generator."""
        from hpo.tracking import wandb_export  # noqa: PLC0415 - imports wandb, which takes seconds

        record = self.record
        manifest = verify_files(record.fetch(record.folder / EXPORT))  # the whole folder is uploaded
        origin = manifest["origin"]
        run_id = f"{record.id}-export-{origin['trials']}-{origin['final_epochs']}"  # a search may be extended
        if replicates := origin.get(REPLICATES):
            run_id = f"{run_id}-{replicates}"
        if self._is_complete(run_id):
            return
        config = {name: value for name, value in record.search.as_dict().items() if name != "on_finish"}
        opened = self._begin(run_id, EXPORT, EXPORT, {**config, "export": origin})
        finals = self._final_reports()
        self._log_epochs(opened, finals, record.folder / FINAL, ended=True)
        if opened.rows == len(finals):
            opened.run.log(wandb_export.tables(record, manifest))
            opened.rows += 1
        opened.run.summary.update(wandb_export.summary(record, manifest))
        wandb_export.log_generator(record, manifest, opened.run, self.finish_seconds if self.online else None)
        self._end(opened)

    def close(self) -> None:
        """Close all runs, also of unfinished trials. A continued search resumes these; offline it writes them anew."""
        while self._open:
            _, opened = self._open.popitem()
            opened.run.finish()
        self._unconfirmed = [ended for ended in self._unconfirmed if not self._confirm(ended)]

    @property
    def unconfirmed(self) -> int:
        """Ended runs of which the server lacks rows, or had not counted them yet."""
        return len(self._unconfirmed)

    def give_up(self) -> None:
        """Abandon the open runs at once, without sending the rest of them."""
        from hpo.tracking import wandb_internals  # noqa: PLC0415 - imports wandb, which takes seconds

        runs = [opened.run for opened in list(self._open.values())]
        self._open.clear()
        self._unconfirmed.clear()
        wandb_internals.abandon(runs)

    def _begin(self, run_id: str, name: str, job_type: str, config: Mapping[str, Any]) -> _OpenRun:
        import wandb  # noqa: PLC0415 - takes seconds

        if not self.online:  # write it anew: W&B writes its file every 15 seconds, so a killed driver's is incomplete
            for fragment in self._fragments(run_id):
                shutil.rmtree(fragment)
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=self.record.name,
            job_type=job_type,
            id=run_id,
            name=f"{self.record.name}-{name}",
            config=dict(config),
            mode="online" if self.online else "offline",
            resume="allow" if self.online else None,
            dir=self.record.folder,
            reinit="create_new",
            settings=wandb.Settings(
                init_timeout=INIT_SECONDS,
                finish_timeout=self.finish_seconds,
                finish_timeout_raises=True,
                console="off",
                silent=True,
                x_disable_stats=True,
                x_disable_meta=True,  # command lines may hold secrets: --on-finish
                disable_git=True,
                disable_code=True,
                x_save_requirements=False,  # takes 0.1 s of CPU per run; search.json has the versions
            ),
        )
        run.define_metric("epoch", hidden=True)
        run.define_metric("val/*", step_metric="epoch")
        run.define_metric("train/*", step_metric="epoch")
        if not self.online:
            return _OpenRun(run, 0)
        self.url = self.url or self._workspace(run)
        return _OpenRun(run, run.starting_step)  # `step` is 0 until the first row, also of a resumed run

    def _workspace(self, run: Any) -> str:
        """The address of the search's workspace, which is made once; or of the group's page if that fails."""
        saved = self.record.folder / "wandb" / "workspace.url"
        if saved.exists():
            return saved.read_text(errors="replace")
        try:
            from hpo.tracking import wandb_workspace  # noqa: PLC0415 - imports wandb, which takes seconds

            params = self.record.about["space"]["distributions"]
            url = wandb_workspace.save(run.entity, run.project, self.record.name, params, _scatter(self.record.search))
        except Exception:  # whatever fails, a missing page must not stop the logging
            log.debug("W&B has no workspace of this search", exc_info=True)
            return f"{run.project_url}/groups/{quote(self.record.name)}"
        saved.write_text(url)
        return url

    def _log_epochs(self, opened: _OpenRun, reports: Sequence[EvalReport], folder: Path, *, ended: bool) -> None:
        import wandb  # noqa: PLC0415 - takes seconds

        for report in reports[opened.rows :]:
            row: dict[str, Any] = {
                "epoch": report.epoch,
                "images": report.images,
                "images_per_second": report.images_per_second,
                **report.curves(),
            }
            if should_log_images(report.epoch, last=ended and report is reports[-1]):
                path = picture_path(self.record.fetch(folder / strip_name(report.epoch)))
                if path:
                    row["val/strip"] = wandb.Image(path, caption=STRIP_COLUMNS)
            opened.run.log(row)
            opened.rows += 1

    def _final_reports(self) -> list[EvalReport]:
        if not self.record.search.final_epochs:
            return []
        _, state = load_checkpoint(self.record.fetch(self.record.folder / FINAL / LAST))
        return [EvalReport.from_dict(report) for report in state["reports"]]

    def _end(self, opened: _OpenRun, *, failed: bool = False) -> None:
        """Close a run. Raises TimeoutError."""
        opened.run.finish(exit_code=int(failed))
        if not self._confirm(opened):
            self._unconfirmed.append(opened)

    def _confirm(self, ended: _OpenRun) -> bool:
        """Mark a run as complete if it has all its rows.

        Online that is a query to the server, because W&B reports no error when it gives up on a run's rows.
        """
        if self.online and self._rows_on_server(ended.run) < ended.rows:
            return False
        self._marker(ended.run.id).touch()
        self.sent += 1
        if self.online:
            for fragment in self._fragments(ended.run.id):  # or `wandb sync` would send them a second time
                (fragment / f"run-{ended.run.id}.wandb.synced").touch()
        return True

    def _rows_on_server(self, run: Any) -> int:
        from hpo.tracking import wandb_internals  # noqa: PLC0415 - imports wandb, which takes seconds

        variables = {"entity": run.entity, "project": run.project, "run": run.id}
        answer = wandb_internals.query(_ROWS_QUERY, variables, INIT_SECONDS)
        on_server = (answer.get("project") or {}).get("run") or {}
        return on_server.get("historyLineCount") or 0

    def _run_id(self, number: int) -> str:
        return f"{self.record.id}-{number:05}"

    def _marker(self, run_id: str, *, online: bool | None = None) -> Path:
        """The file whose existence means that the run is complete, on disk or on the server."""
        kind = "sent" if (self.online if online is None else online) else "whole"
        return self.record.folder / "wandb" / f"{run_id}.{kind}"

    def _is_complete(self, run_id: str) -> bool:
        """Whether the run is complete, or has ended so that only `close` asks the server once more."""
        if any(ended.run.id == run_id for ended in self._unconfirmed):
            return True
        return self._marker(run_id).exists() or self._marker(run_id, online=True).exists()

    def _fragments(self, run_id: str) -> Sequence[Path]:
        return sorted((self.record.folder / "wandb").glob(f"offline-run-*-{run_id}"))
