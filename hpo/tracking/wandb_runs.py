"""A search as runs in W&B, drawn from its record: to files, or to a server. What is there already is left out.

A run's rows are its epochs, so that the number of rows that a server has says which is the next. Nothing here is
fit for the thread that runs the search: calls block, and raise what W&B raises.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from optuna.trial import FrozenTrial

from hpo.policy import leaderboard
from hpo.policy.leaderboard import best_report, reports_of
from hpo.policy.trial_attributes import CONFIG
from hpo.store import search_results
from hpo.store.layout import EXPORT, FINAL
from hpo.store.record import Record
from hpo.views.formatting import collapse_message
from model.checkpoint import load_checkpoint
from model.common.errors import ConfigError
from model.data.image_formats import ImageError
from model.data.image_reading import read_image
from model.denoise import verify_files
from model.export import STRIP_FILE
from model.run_layout import LAST, should_log_images, strip_name
from model.training_report import EvalReport

log = logging.getLogger(__name__)

PROJECT = "pix2pix-search"
ALIASES = ("best", "candidate")  # of the exported generator
INIT_SECONDS = 10.0  # for a server to answer
_KEY = "WANDB_API_KEY"
_MODES = {"run": "online", "dryrun": "offline"}  # by former names
_OF_ONE_RUN = (
    "WANDB_RUN_ID", "WANDB_NAME", "WANDB_RUN_NAME", "WANDB_NOTES", "WANDB_RUN_NOTES", "WANDB_TAGS", "WANDB_RUN_TAGS",
    "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_RUN_JOB_TYPE", "WANDB_JOB_NAME", "WANDB_RESUME", "WANDB_RESUME_FROM",
    "WANDB_FORK_FROM", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_LAUNCH", "WANDB_LAUNCH_CONFIG_PATH",
    "WANDB_CONFIG", "WANDB_CONFIG_PATHS", "WANDB_PROGRAM",
)  # fmt: skip
_STRIP = "noisy | denoised | clean"  # its columns
_PICTURED_TRIALS = 10
_ROWS = """query SearchRunRows($entity: String!, $project: String!, $run: String!) {
  project(name: $project, entityName: $entity) { run(name: $run) { historyLineCount } } }"""


def leave_out(wandb: str) -> None:
    """Take out of the environment what another job has left there for its one run, and say so: W&B would have it hold
    for every run of a search. Of WANDB_MODE it is said where it contradicts. To be called before W&B is imported.

    Args:
        wandb: offline, online or disabled, as the search has it.
    """
    mode = os.environ.pop("WANDB_MODE", wandb)
    if _MODES.get(mode, mode) != wandb:
        log.warning("W&B: WANDB_MODE=%s is not followed; --wandb is %s, and that holds", mode, wandb)
    if wandb == "disabled":
        return
    found = [name for name in _OF_ONE_RUN if os.environ.pop(name, None) is not None]
    if found:
        log.warning("W&B: %s left out: a search has many runs, and names them itself", ", ".join(found))


def log_in() -> tuple[str, str | None]:
    """Find the key where W&B looks for one; the server is asked whether it knows it, if it answers at all.

    Gives the server's address and the key; None where W&B knows another way in.

    From then on it is in this process's memory alone: what is started later, such as Ray, does not inherit it.
    Raises ConfigError: no key, or one that is malformed or refused; no address of a server.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb  # noqa: PLC0415 - seconds that a search without W&B need not pay
    from wandb.sdk import wandb_setup  # noqa: PLC0415
    from wandb.sdk.lib import wbauth  # noqa: PLC0415

    try:
        url = wandb_setup.singleton().settings.base_url
        found = wbauth.authenticate_session(host=url, source="hpo", prompt=False)
    except (wandb.errors.AuthenticationError, ValueError) as error:  # ValueError: of WANDB_BASE_URL and its like
        raise ConfigError(f"W&B: {error}") from None
    os.environ.pop(_KEY, None)
    if found is None:
        raise ConfigError(
            f"W&B: there is no key for {url}. Set {_KEY}, or run `wandb login`, which keeps it in ~/.netrc; "
            f"--wandb offline needs none, and `hpo sync` sends its runs later"
        )
    key = found.api_key if isinstance(found, wbauth.AuthApiKey) else None
    if key is not None and _is_refused(url, key):
        raise ConfigError(f"W&B: {url} refuses the key; --wandb offline needs none")
    return url, key


class _Straight(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """See HTTPRedirectHandler. Not followed: the key would go along."""


def _is_refused(url: str, key: str) -> bool:
    """By the server; one that is slow, away or failing has not refused anything."""
    request = urllib.request.Request(
        f"{url.rstrip('/')}/graphql",
        data=json.dumps({"query": "query Viewer { viewer { id } }"}).encode(),
        headers={
            "Authorization": "Basic " + base64.b64encode(f"api:{key}".encode()).decode(),
            "Content-Type": "application/json",
        },
    )
    try:
        with urllib.request.build_opener(_Straight).open(request, timeout=INIT_SECONDS / 2) as answer:
            told = json.load(answer)
        return told["data"]["viewer"] is None
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _picture(path: Path) -> str | None:
    """One that W&B may open, which knows more formats than we trust; None where there is none."""
    try:
        read_image(path)
    except ImageError:
        return None
    return str(path)


@dataclass
class _Run:
    """One that is open."""

    run: Any
    rows: int  # that it has


@dataclass
class WandbRuns:
    """One run for each trial, and one for each export. One thread uses it.

    finish_seconds: for what is left of a run to be sent when it ends.
    """

    record: Record
    online: bool
    finish_seconds: float
    where: str | None = None  # people look at them, once one was opened online
    sent: int = 0  # runs that this object has brought to their end
    _open: dict[int, _Run] = field(default_factory=dict)
    _uncounted: list[_Run] = field(default_factory=list)  # ended, and the server had not counted all rows yet

    def __post_init__(self) -> None:
        folder = self.record.folder / "wandb"
        os.environ.update(WANDB_DATA_DIR=str(folder), WANDB_ERROR_REPORTING="false", WANDB_SILENT="true")

    def log(self, trial: FrozenTrial) -> None:
        """What the run of a trial lacks; closes it where the trial has ended."""
        number, ended = trial.number, trial.state.is_finished()
        if self._is_done(self._run_id(number)):
            return
        if number not in self._open:
            config = {**trial.user_attrs[CONFIG], "search": self.record.name, "trial": number}
            self._open[number] = self._begin(self._run_id(number), f"{number:05}", "trial", config)
        opened = self._open[number]
        self._write(opened, reports_of(trial), self.record.trial_folder(number), ended=ended)
        if ended:
            del self._open[number]
            best = best_report(trial, self.record.search.objective)
            if best is not None:  # kept here: W&B's own summary="max" is wrong after a resumed run
                opened.run.summary.update({"best/ssim": best.ssim, "best/psnr": best.psnr_db, "best/epoch": best.epoch})
            outcome = leaderboard.outcome_of(trial)
            opened.run.tags = tuple(dict.fromkeys((*(opened.run.tags or ()), outcome.replace("finished", "complete"))))
            self._end(opened, failed=outcome in ("failed", *leaderboard.DEAD))  # W&B calls all others finished

    def log_export(self) -> None:
        """The run of the export: the final training's curve, the leaderboard, pictures, the exported generator."""
        record = self.record
        manifest = verify_files(record.fetch(record.folder / EXPORT))  # all that lies there is uploaded
        origin = manifest["origin"]
        run_id = f"{record.id}-export-{origin['trials']}-{origin['final_epochs']}"  # a search may be extended
        if self._is_done(run_id):
            return
        asked = {name: value for name, value in record.search.as_dict().items() if name != "on_finish"}
        opened = self._begin(run_id, EXPORT, EXPORT, {**asked, "export": origin})
        finals = self._final_reports()
        self._write(opened, finals, record.folder / FINAL, ended=True)
        if opened.rows == len(finals):
            opened.run.log({"leaderboard": self._leaderboard(), "samples": self._samples(manifest)})
            opened.rows += 1
        for split, table in manifest["metrics"].items():
            rows = {what: row for what, row in (table or {}).items() if isinstance(row, Mapping)}
            for what, row in rows.items():
                opened.run.summary.update({f"{split}/{what}/{name}": float(value) for name, value in row.items()})
        if collapses := search_results.collapses(record):
            told = "\n".join(map(collapse_message, collapses))
            opened.run.summary.update({"final/collapses": len(collapses), "final/what_happened": told})
        self._log_generator(opened.run, manifest)
        self._end(opened)

    def close(self) -> None:
        """Also the runs of unfinished trials; a continued search goes on with them, offline from their first epoch."""
        while self._open:
            _, opened = self._open.popitem()
            opened.run.finish()
        self._uncounted = [ended for ended in self._uncounted if not self._is_delivered(ended)]

    @property
    def unconfirmed(self) -> int:
        """Runs that have ended, and of which the server does not have all rows, or had not counted them yet."""
        return len(self._uncounted)

    def give_up(self) -> None:
        """Forget the open runs, and end W&B's process, which would try for a week to deliver them."""
        import wandb  # noqa: PLC0415
        from wandb.sdk import wandb_setup  # noqa: PLC0415

        for opened in list(self._open.values()):  # its thread would complain, too
            if opened.run._run_status_checker is not None:
                opened.run._run_status_checker.stop()
        self._open.clear()
        self._uncounted.clear()
        service = wandb_setup.singleton()._connection
        if service is not None and service._proc is not None:
            service._proc._process.kill()
        with suppress(Exception, SystemExit):  # it complains of what was just done
            wandb.teardown()

    # --- one run ---------------------------------------------------------------------------------------------------

    def _begin(self, run_id: str, name: str, job_type: str, config: Mapping[str, Any]) -> _Run:
        import wandb  # noqa: PLC0415

        if not self.online:  # begun anew: W&B writes its file every 15 seconds, and a killed driver's is cut short
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
                x_disable_meta=True,  # command lines may have secrets in them: --on-finish
                disable_git=True,
                disable_code=True,
                x_save_requirements=False,  # 0.1 s of CPU a run; search.json has the versions
            ),
        )
        run.define_metric("epoch", hidden=True)
        for names in ("val/*", "train/*"):
            run.define_metric(names, step_metric="epoch")
        if not self.online:
            return _Run(run, 0)
        self.where = self.where or self._workspace(run)
        return _Run(run, run.starting_step)  # `step` is 0 until the first row, resumed or not

    def _workspace(self, run: Any) -> str:
        """Made once for a search; the page of the group where that fails."""
        kept = self.record.folder / "wandb" / "workspace.url"
        if kept.exists():
            return kept.read_text(errors="replace")
        try:
            from hpo.tracking import wandb_workspace  # noqa: PLC0415

            params = self.record.about["space"]["distributions"]
            address = wandb_workspace.save(run.entity, run.project, self.record.name, params)
        except Exception:  # a view of the runs is not worth more than the runs
            log.debug("W&B has no workspace of this search", exc_info=True)
            return f"{run.project_url}/groups/{quote(self.record.name)}"
        kept.write_text(address)
        return address

    def _write(self, opened: _Run, reports: Sequence[EvalReport], folder: Path, *, ended: bool) -> None:
        import wandb  # noqa: PLC0415

        for report in reports[opened.rows :]:
            row: dict[str, Any] = {
                "epoch": report.epoch,
                "images": report.images,
                "images_per_second": report.images_per_second,
                **report.curves(),
            }
            if should_log_images(report.epoch, last=ended and report is reports[-1]):
                strip = _picture(self.record.fetch(folder / strip_name(report.epoch)))
                if strip:
                    row["val/strip"] = wandb.Image(strip, caption=_STRIP)
            opened.run.log(row)
            opened.rows += 1

    def _end(self, opened: _Run, *, failed: bool = False) -> None:
        """Raises TimeoutError."""
        opened.run.finish(exit_code=1 if failed else 0)
        if not self._is_delivered(opened):
            self._uncounted.append(opened)

    def _is_delivered(self, ended: _Run) -> bool:
        """Marks it as done if so. Online the server is asked: W&B tells nobody when it gives up on a run's rows."""
        if self.online and self._rows_there(ended.run) < ended.rows:
            return False
        self._marker(ended.run.id).touch()
        self.sent += 1
        if self.online:
            for fragment in self._fragments(ended.run.id):  # `wandb sync` would send them a second time
                (fragment / f"run-{ended.run.id}.wandb.synced").touch()
        return True

    def _rows_there(self, run: Any) -> int:
        from wandb.apis.public.service_api import ServiceApi  # noqa: PLC0415
        from wandb.sdk import wandb_setup  # noqa: PLC0415

        api = ServiceApi(wandb_setup.singleton().settings, timeout=INIT_SECONDS)
        told: dict[str, Any] = api.execute_graphql(_ROWS, {"entity": run.entity, "project": run.project, "run": run.id})
        found = (told.get("project") or {}).get("run") or {}
        return found.get("historyLineCount") or 0

    def _run_id(self, number: int) -> str:
        return f"{self.record.id}-{number:05}"

    def _marker(self, run_id: str, *, online: bool | None = None) -> Path:
        """Its existence means that the run is whole, on disk or on the server."""
        kind = "sent" if (self.online if online is None else online) else "whole"
        return self.record.folder / "wandb" / f"{run_id}.{kind}"

    def _is_done(self, run_id: str) -> bool:
        """Or it has ended, and `close` asks once more what of it has arrived."""
        if any(ended.run.id == run_id for ended in self._uncounted):
            return True
        return self._marker(run_id).exists() or self._marker(run_id, online=True).exists()

    def _fragments(self, run_id: str) -> Sequence[Path]:
        return sorted((self.record.folder / "wandb").glob(f"offline-run-*-{run_id}"))

    # --- what an export run has beside curves ------------------------------------------------------------------------

    def _final_reports(self) -> list[EvalReport]:
        if not self.record.search.final_epochs:
            return []
        _, state = load_checkpoint(self.record.fetch(self.record.folder / FINAL / LAST))
        return [EvalReport.from_dict(report) for report in state["reports"]]

    def _leaderboard(self) -> Any:
        import wandb  # noqa: PLC0415

        rows = leaderboard.leaderboard(self.record.trials(), self.record.search.objective)
        names = sorted({name for row in rows for name in row["params"]})
        told = [name for name in rows[0] if name != "params"]
        data = [[row[name] for name in told] + [row["params"].get(name) for name in names] for row in rows]
        return wandb.Table(columns=[*told, *names], data=data)

    def _samples(self, manifest: Mapping[str, Any]) -> Any:
        """The exported generator's pictures, and the last ones of the best trials."""
        import wandb  # noqa: PLC0415

        rows = leaderboard.leaderboard(self.record.trials(), self.record.search.objective)[:_PICTURED_TRIALS]
        split = "validation" if manifest["metrics"]["test"] is None else "test"
        measured = manifest["metrics"][split]["denoised"]
        table = wandb.Table(columns=["what", "ssim", "psnr_db", "columns", "picture"])
        exported = wandb.Image(str(self.record.folder / EXPORT / STRIP_FILE))
        psnr_db = float(measured["psnr_db"])
        table.add_data(f"exported, {split}", measured["ssim"], psnr_db, "noisy | clean | denoised", exported)
        for row in rows:
            strip = _picture(self.record.fetch(self.record.trial_folder(row["number"]) / strip_name(row["epochs"])))
            if strip:
                picture = wandb.Image(strip)
                table.add_data(f"trial {row['number']}", row["ssim"], row["psnr_db"], _STRIP, picture)
        return table

    def _log_generator(self, run: Any, manifest: Mapping[str, Any]) -> None:
        import wandb  # noqa: PLC0415

        # Two people's `first` may share a project, and must not share versions.
        artifact = wandb.Artifact(
            f"{self.record.name}-{self.record.id}",
            type="model",
            metadata={name: manifest[name] for name in ("origin", "model", "config", "data", "metrics")},
        )
        artifact.add_dir(str(self.record.folder / EXPORT), skip_cache=True)
        run.log_artifact(artifact, aliases=list(ALIASES))
        if self.online:
            artifact.wait(timeout=int(self.finish_seconds))
