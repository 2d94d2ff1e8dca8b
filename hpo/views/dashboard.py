"""`hpo dashboard`: optuna-dashboard for a search, on this machine alone.

It gets a copy of the study in memory, brought up to date from the record while somebody looks. Its pages offer to
delete a study, to end trials, to upload files and to write notes into the study, and any web site in the same browser
can send such requests to a port of this machine; so from outside the copy is read-only, too.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, BinaryIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import optuna
import optuna_dashboard
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from hpo.policy import leaderboard
from hpo.policy.trial_attributes import REPORTS, SUGGESTED_BY
from hpo.store.record import Record
from hpo.views.formatting import counts, outcome
from model.common.errors import ConfigError, MachineError
from model.run_layout import should_log_images, strip_name

log = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_REFRESH_SECONDS = 2.0
_ARTIFACT = "artifacts:"  # Optuna's prefix of the system attributes that name a trial's files


class Strips:
    """Optuna's ArtifactStore: the pictures that trials left beside their checkpoints. Artifact 00012-0003 is trial 12's
    after epoch 3."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def path(self, artifact_id: str) -> Path:
        """Raises ValueError for what cannot be one."""
        number, epoch = map(int, artifact_id.split("-"))
        return self._record.trial_folder(number) / strip_name(epoch)

    def attributes(self, trial: FrozenTrial) -> dict[str, str]:
        """System attributes that name them, of the epochs that W&B shows."""
        epochs = len(trial.user_attrs[REPORTS])
        named = {}
        for epoch in range(1, epochs + 1):
            artifact_id = f"{trial.number:05}-{epoch:04}"
            # With a storage they are there, and are brought when somebody looks.
            there = self._record.storage or self.path(artifact_id).exists()
            if should_log_images(epoch, last=epoch == epochs) and there:
                about = {
                    "artifact_id": artifact_id,
                    "filename": f"epoch {epoch}: noisy, denoised, clean.png",
                    "mimetype": "image/png",
                    "encoding": None,
                }
                named[_ARTIFACT + artifact_id] = json.dumps(about)
        return named

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """See ArtifactStore."""
        try:
            return self._record.fetch(self.path(artifact_id)).open("rb")
        except (OSError, ValueError, MachineError) as error:
            raise ArtifactNotFound(artifact_id) from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Never: nothing is put into a search from outside."""
        raise PermissionError(artifact_id)

    def remove(self, artifact_id: str) -> None:
        """Never, as above."""
        raise PermissionError(artifact_id)


class Snapshot:
    """The study as the record has it, with what people look for in place of what the search needs: of the reports only
    the best epoch's figures, and the strips."""

    def __init__(self, record: Record) -> None:
        self.storage = InMemoryStorage()
        self.strips = Strips(record)
        self._record, self._seen = record, dict[int, FrozenTrial]()
        self._lock, self._refreshed = threading.Lock(), time.monotonic()
        self._study = optuna.create_study(study_name=record.name, storage=self.storage, direction="maximize")
        self._study.set_metric_names([record.search.objective])
        self._update()

    def refresh(self) -> None:
        """At most every two seconds. What cannot be read now is told, and shown as it was."""
        with self._lock:
            if time.monotonic() - self._refreshed < _REFRESH_SECONDS:
                return
            try:
                self._record.refresh()
                self._update()
            except (MachineError, SQLAlchemyError) as error:
                log.warning("%s", error)
            self._refreshed = time.monotonic()

    def _update(self) -> None:
        for trial in self._record.trials():
            before = self._seen.get(trial.number)
            if before is None:
                template = create_trial(
                    state=trial.state,
                    params=trial.params,
                    distributions=trial.distributions,
                    values=trial.values,
                    intermediate_values=trial.intermediate_values,
                    user_attrs=self._facts(trial),
                    system_attrs=self.strips.attributes(trial),
                )
                template.datetime_start, template.datetime_complete = trial.datetime_start, trial.datetime_complete
                self.storage.create_new_trial(self._study._study_id, template)  # its id is its number
            elif trial != before:
                self._add(trial, before)
            self._seen[trial.number] = trial
        note = f"# {self._record.name}\n\n{counts(self._record.trials(), self._record.search)}. A copy of the record, "
        note += "which follows the search; nothing that is written here is kept. `hpo show` has the leaderboard."
        optuna_dashboard.save_note(self._study, note)

    def _add(self, trial: FrozenTrial, before: FrozenTrial) -> None:
        """To one that was under way. It ends when it is seen to have ended, two seconds late at most."""
        for key, attribute in self.strips.attributes(trial).items():
            self.storage.set_trial_system_attr(trial.number, key, attribute)
        for name, fact in self._facts(trial).items():
            self.storage.set_trial_user_attr(trial.number, name, fact)
        for step in trial.intermediate_values.keys() - before.intermediate_values.keys():
            self.storage.set_trial_intermediate_value(trial.number, step, trial.intermediate_values[step])
        if trial.state != TrialState.RUNNING:
            self.storage.set_trial_state_values(trial.number, trial.state, trial.values)

    def _facts(self, trial: FrozenTrial) -> dict[str, Any]:
        row = leaderboard.row(trial, self._record.search.objective)
        names = ("ssim", "psnr_db", "l1", "best_epoch", "epochs", "images", "images_per_second")
        facts = {name: row[name] for name in names if row[name] is not None}
        return {"outcome": outcome(trial), "suggested_by": trial.user_attrs.get(SUGGESTED_BY), **facts}


def _guarded(application: WSGIApplication, snapshot: Snapshot) -> WSGIApplication:
    """For who looks from this machine: other methods than GET would change the copy, and other hosts' names are those
    of web sites that point at this port."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "").rpartition(":")[0] or environ.get("HTTP_HOST", "")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD") or host not in (_HOST, "localhost"):
            start_response("403 Forbidden", [("Content-Type", "application/json")])
            return [b'{"reason": "hpo dashboard shows, and changes nothing"}']
        if environ["PATH_INFO"].startswith("/api/"):
            snapshot.refresh()
        return application(environ, start_response)

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """A line for each request helps nobody."""


def serving(record: Record, port: int) -> tuple[WSGIServer, str]:
    """A server that listens, and the address of the search's page. port: 0 takes any. Raises ConfigError."""
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # metric names: since 3.2
    warnings.filterwarnings("ignore", module="optuna.importance")  # too few trials for some: the page shows it
    snapshot = Snapshot(record)
    application = optuna_dashboard.wsgi(snapshot.storage, artifact_store=snapshot.strips)
    try:
        server = make_server(_HOST, port, _guarded(application, snapshot), _Server, _Quiet)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"port={port}: cannot be listened on ({error}); name another with --port") from error
    return server, f"http://{_HOST}:{server.server_port}/dashboard/studies/0"
