"""`hpo dashboard`: optuna-dashboard for a search, on this machine only.

The pages of optuna-dashboard can delete a study, end trials, upload files and write notes, and any web site in the same
browser can send such requests to a port of this machine. So the server refuses everything but reading.
"""

from __future__ import annotations

import copy
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
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from hpo.policy import leaderboard
from hpo.policy.trial_attributes import KNOWN, REPORTS, SUGGESTED_BY
from hpo.store.record import Record
from hpo.views.formatting import counts, outcome
from model.common.errors import ConfigError, MachineError
from model.training_files import should_log_images, strip_name

log = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_REFRESH_SECONDS = 2.0
_CONSTRAINTS = "constraints"
_ARTIFACT = "artifacts:"  # Optuna's prefix of the system attributes that name a trial's files


class PictureStore:
    """An Optuna ArtifactStore of the trials' pictures. 00012-0003 is the picture of trial 12 after epoch 3."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def path(self, artifact_id: str) -> Path:
        """The file of an artifact. Raises ValueError for an ID that cannot exist."""
        number, epoch = map(int, artifact_id.split("-"))
        return self._record.trial_folder(number) / strip_name(epoch)

    def attributes(self, trial: FrozenTrial) -> dict[str, str]:
        """The system attributes that name a trial's pictures, for the epochs that W&B shows."""
        epochs = len(trial.user_attrs[REPORTS])
        attributes = {}
        for epoch in range(1, epochs + 1):
            artifact_id = f"{trial.number:05}-{epoch:04}"
            # A storage has them all, and each is downloaded on demand.
            exists = self._record.storage or self.path(artifact_id).exists()
            if should_log_images(epoch, last=epoch == epochs) and exists:
                description = {
                    "artifact_id": artifact_id,
                    "filename": f"epoch {epoch}: noisy, denoised, clean.png",
                    "mimetype": "image/png",
                    "encoding": None,
                }
                attributes[_ARTIFACT + artifact_id] = json.dumps(description)
        return attributes

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """See ArtifactStore."""
        try:
            return self._record.fetch(self.path(artifact_id)).open("rb")
        except (OSError, ValueError, MachineError) as error:
            raise ArtifactNotFound(artifact_id) from error

    def write(self, artifact_id: str, content_body: BinaryIO | None = None) -> None:
        """Refused: the dashboard is read-only."""
        raise PermissionError(artifact_id)

    remove = write


class Snapshot:
    """A copy of the study in memory: of the reports it has only the best epoch's metrics, and it has the pictures."""

    def __init__(self, record: Record) -> None:
        self.storage = InMemoryStorage()
        self.pictures = PictureStore(record)
        self._record, self._seen = record, dict[int, FrozenTrial]()
        self._lock, self._refreshed = threading.Lock(), time.monotonic()
        self._study = optuna.create_study(
            study_name=record.name, storage=self.storage, directions=record.search.directions
        )
        several = record.search.is_multi_objective
        self._study.set_metric_names(list(record.search.objectives) if several else [record.search.objective])
        self._update()

    def refresh(self) -> None:
        """Update the copy, at most every two seconds. If the record cannot be read, log that and keep the old copy."""
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
                template = copy.copy(trial)
                template.user_attrs, template.system_attrs = self._facts(trial), self._attributes(trial)
                self.storage.create_new_trial(self._study._study_id, template)  # its id is its number
            elif trial != before:
                self._change(trial, before)
            self._seen[trial.number] = trial
        note = "This read-only copy of the record follows the search. `hpo show` has the leaderboard."
        counted = counts(self._record.trials(), self._record.search)
        optuna_dashboard.save_note(self._study, f"# {self._record.name}\n\n{counted}. {note}")

    def _change(self, trial: FrozenTrial, before: FrozenTrial) -> None:
        """Update a trial that was running. Its end time is the time of this update, at most two seconds late."""
        for key, attribute in self._attributes(trial).items():
            self.storage.set_trial_system_attr(trial.number, key, attribute)
        for name, fact in self._facts(trial).items():
            self.storage.set_trial_user_attr(trial.number, name, fact)
        for step in trial.intermediate_values.keys() - before.intermediate_values.keys():
            self.storage.set_trial_intermediate_value(trial.number, step, trial.intermediate_values[step])
        if trial.state != TrialState.RUNNING:
            self.storage.set_trial_state_values(trial.number, trial.state, trial.values)

    def _attributes(self, trial: FrozenTrial) -> dict[str, Any]:
        """System attributes: the pictures, and the constraints as optuna-dashboard 0.2 reads them."""
        constraints = {_CONSTRAINTS: list(trial.constraints.values())} if trial.constraints else {}
        return {**self.pictures.attributes(trial), **constraints}

    def _facts(self, trial: FrozenTrial) -> dict[str, Any]:
        row = leaderboard.row(trial, self._record.search.objective)
        names = ("ssim", "psnr_db", "l1", "haarpsi", "best_epoch", "epochs", "images", "images_per_second")
        facts = {name: row[name] for name in names if row[name] is not None}
        known = trial.user_attrs.get(KNOWN, {})
        return {"outcome": outcome(trial), "suggested_by": trial.user_attrs.get(SUGGESTED_BY), **known, **facts}


def _guarded(application: WSGIApplication, snapshot: Snapshot) -> WSGIApplication:
    """Refuse all methods but GET and HEAD, which could change the copy, and all host names but this machine's, with
    which a web site could reach this port (DNS rebinding)."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "").rpartition(":")[0] or environ.get("HTTP_HOST", "")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD") or host not in (_HOST, "localhost"):
            start_response("403 Forbidden", [("Content-Type", "application/json")])
            return [b'{"reason": "hpo dashboard is read-only"}']
        if environ["PATH_INFO"].startswith("/api/"):
            snapshot.refresh()
        return application(environ, start_response)

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print no line for each request."""


def open_server(record: Record, port: int) -> tuple[WSGIServer, str]:
    """Return a server that listens on the port, or on a free one for 0, and the address of the search's page.

    Raises:
        ConfigError: the port cannot be opened.
    """
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # metric names: since 3.2
    warnings.filterwarnings("ignore", module="optuna.importance")  # of too few trials: the page shows that
    snapshot = Snapshot(record)
    application = optuna_dashboard.wsgi(snapshot.storage, artifact_store=snapshot.pictures)
    try:
        server = make_server(_HOST, port, _guarded(application, snapshot), _Server, _Quiet)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"port={port}: cannot listen on it ({error}); choose another with --port") from error
    return server, f"http://{_HOST}:{server.server_port}/dashboard/studies/0"
