"""The record of a search: its folder, search.json and the Optuna study. Its only writer is the driver."""

from __future__ import annotations

import copy
import errno
import json
import platform
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

import search_spaces
from hpo.policy import user_files
from hpo.policy.report_decision import Decision, decide_start
from hpo.policy.search_config import SEARCH_FILE, SearchConfig, check_name
from hpo.policy.suggestions import Suggestion
from hpo.policy.trial_attributes import DECISION, ERROR, FAILURES, KEPT, KNOWN, MIGRATIONS, REPORTS
from hpo.policy.trial_history import with_report
from hpo.policy.trial_objectives import excesses, objective_values
from hpo.store import integrity
from hpo.store.file_names import LOCK_FILE, STUDY_FILE
from hpo.store.lock import acquire_lock
from hpo.store.object_storage import Storage
from hpo.store.search_file import DamagedError, RecordError, check_compatible, not_found, parse_search_file
from hpo.store.study_database import Study, check_file, describe_error, file_url
from model.common.errors import ConfigError, MachineError
from model.common.files import check_writable, describe_os_error, write_atomically
from model.common.git import git_commit
from model.training_report import EvalReport

_PACKAGES = ("ray", "optuna", "torch", "numpy", "wandb")
_SEARCH_ID = "search_id"  # key in the study's metadata
_DATABASE_ERRORS = (sqlite3.Error, SQLAlchemyError, StorageInternalError)
_DAMAGE_SIGNS = ("malformed", "not a database", "no such table", "no such column", "file format")


class Record:
    """An existing search; `create` makes one. Its trials are Optuna's FrozenTrial, by number.

    Args:
        read_only: write nothing, not even what SQLite would repair; for a reader while a driver writes.
        waits: retry while a database server is unreachable; for drivers and `hpo watch`.
        storage: the search's part of the storage, if it has one; the folder is a local copy of it.
        sync: downloads what is newer in the storage than in the folder.
        user_folder: where the user looks for the search; None: in `runs`. It differs if `runs` is temporary.

    Raises:
        ConfigError: the search does not exist.
        RecordError: the search is damaged, or its database cannot be read.
    """

    def __init__(
        self,
        runs: Path,
        name: str,
        *,
        read_only: bool = False,
        waits: bool = False,
        storage: Storage | None = None,
        sync: Callable[[], None] | None = None,
        user_folder: Path | None = None,
    ) -> None:
        self.name = check_name(name)
        self.folder = runs / name
        self.user_folder = user_folder or self.folder
        self.storage, self._sync = storage, sync
        self._read_search()
        self.study_file = None if self.search.study_url else self.folder / STUDY_FILE
        self._study_place = self.search.study_url or str(self.study_file)  # for messages
        self._read_only, self._waits = read_only, waits
        self._study, self._trials = self._open_study()

    def _read_search(self) -> None:
        path = self.folder / SEARCH_FILE
        try:
            self.about, self.search = parse_search_file(path.read_bytes(), path)
        except (FileNotFoundError, NotADirectoryError):
            raise not_found(self.folder.parent, self.name) from None
        self.id: str = self.about["id"]

    def _open_study(self) -> tuple[Study, list[FrozenTrial]]:
        """The study and its trials. Raises RecordError, StudyAwayError."""
        if self.study_file and not self.study_file.exists():
            raise DamagedError(f"{self.study_file}: is gone, and with it the trials; {self._remedy}")
        url, name = _study_of(self.folder, self.about, self._read_only)
        with self._database_errors(Exception):  # of json, for a damaged row; RuntimeError: tables of another Optuna
            if self.study_file:
                check_file(self.study_file, read_only=self._read_only)
            try:
                study = Study(url, name, read_only=self._read_only, waits=self._waits)
            except KeyError:
                raise DamagedError(f"{self._study_place}: has no study {name}; {self._remedy}") from None
            owner = study.metadata().get(_SEARCH_ID, self.id)
        if owner != self.id:
            raise DamagedError(f"{self._study_place}: is another search's, {owner} and not {self.id}; {self._remedy}")
        return study, self._read_trials(study)

    def _read_trials(self, study: Study) -> list[FrozenTrial]:
        """All trials that have begun, checked. Raises RecordError, StudyAwayError."""
        with self._database_errors(Exception):
            trials = study.trials()
        while trials and trials[-1].state == TrialState.WAITING:
            trials.pop()
        for number, trial in enumerate(trials):
            if problem := "number" if trial.number != number else integrity.trial_problem(trial, self.search):
                raise DamagedError(f"{self._study_place}: damaged (trial {number}: its {problem}); {self._remedy}")
        return trials

    @contextmanager
    def _database_errors(self, *others: type[Exception]) -> Iterator[None]:
        """Raise errors of the database as RecordError. others: errors that mean damage, too."""
        try:
            yield
        except (ConfigError, MachineError):  # already explained
            raise
        except Exception as error:
            if not isinstance(error, (*_DATABASE_ERRORS, *others)):
                raise
            cause = describe_error(error)
            if "readonly database" in cause and self._read_only:  # a journal is left, which a reader must not roll back
                raise RecordError(
                    f"{self._study_place}: left mid-write by a crashed driver; run `hpo show {self.name}` once to roll "
                    "the journal back"
                ) from error
            if not isinstance(error, _DATABASE_ERRORS) or any(sign in cause for sign in _DAMAGE_SIGNS):
                raise DamagedError(f"{self._study_place}: damaged ({cause}); {self._remedy}") from error
            raise _unusable(self._study_place, error) from error

    @property
    def _remedy(self) -> str:
        return f"{'put a copy of it in its place, or ' * bool(self.study_file)}delete {self.folder} to start anew"

    @classmethod
    def exists(cls, runs: Path, name: str) -> bool:
        """Whether a search exists. Raises ConfigError for an invalid name."""
        return (runs / check_name(name) / SEARCH_FILE).exists()

    @classmethod
    def create(cls, runs: Path, name: str, search: SearchConfig) -> Record:
        """Create a search in the folder of searches, which is made if it is missing. Raises ConfigError if the space
        cannot be searched or the folder cannot be made, RecordError if the study cannot be written."""
        folder = runs / check_name(name)
        check_writable(folder, "--runs")
        about = {
            "format": 1,
            "name": name,
            "id": secrets.token_hex(4),  # two people's `first` must not meet in W&B
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "search": search.as_dict(),
            "space": search_spaces.load(search.space).check(search.base_config(), search.set),
            "files": user_files.digests(search),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            "git_commit": git_commit(),
        }
        new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with closing(acquire_lock(folder, name)):
            if (folder / SEARCH_FILE).exists():  # another driver was faster
                raise ConfigError(f"{name}: another driver has just begun it; leave its options out to continue it")
            try:
                # The study comes first: beside a search.json, a missing study is a lost one.
                metadata = {} if search.study_url else {_SEARCH_ID: about["id"]}
                Study.create(*_study_of(folder, about), metadata, search.directions)
                write_atomically(folder / SEARCH_FILE, json.dumps(about, indent=2).encode())
            except _DATABASE_ERRORS as error:
                raise _unusable(str(folder / STUDY_FILE), error) from error
            except ConfigError:  # from the database server
                (folder / LOCK_FILE).unlink()
                for path in new_folders:
                    path.rmdir()
                raise
        return cls(runs, name, waits=True)

    def update_config(self, options: Mapping[str, Any]) -> None:
        """Change the options of an existing search. Raises ConfigError for those that cannot change."""
        before = self.search.as_dict()
        search = SearchConfig(**{**before, **options})
        check_compatible(self.name, self.about, self.search, options)
        if search.as_dict() != before:
            self.search = search
            self.about["search"] = search.as_dict()
            write_atomically(self.folder / SEARCH_FILE, json.dumps(self.about, indent=2).encode())

    def sync(self) -> None:
        """Download what is newer in the storage. Raises RecordError, StorageError."""
        if self._sync:
            self._sync()

    def refresh(self) -> None:
        """Read the record again, while a driver writes it. Raises RecordError, StorageError."""
        self.sync()
        self._read_search()
        if self.storage and self.study_file:  # a download replaces the file
            self._study, self._trials = self._open_study()
        else:
            self._trials = self._read_trials(self._study)

    # --- trials ----------------------------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """All trials as they are now. They are never modified: a change replaces a trial."""
        return list(self._trials)

    def trial(self, number: int) -> FrozenTrial:
        """One trial. Raises ConfigError if there is none."""
        if not 0 <= number < len(self._trials):
            raise ConfigError(f"trial={number}: {self.name} has the trials 0 to {len(self._trials) - 1}")
        return self._trials[number]

    def trial_folder(self, number: int) -> Path:
        """The folder of a trial's checkpoints and sample images. `fetch` a file before reading it."""
        return self.folder / "trials" / f"{number:05}"

    def fetch(self, path: Path) -> Path:
        """Download a file or folder of the search, or remove it if the storage has none. Raises StorageError."""
        if self.storage:
            self.storage.fetch(path.relative_to(self.folder).as_posix(), path)
        return path

    def has_file(self, path: Path) -> bool:
        """Whether the search has a file, in its folder or in the storage."""
        return self.storage.exists(path.relative_to(self.folder).as_posix()) if self.storage else path.exists()

    def queued(self) -> FrozenTrial | None:
        """The next trial that a user has put into the study with Optuna's enqueue_trial."""
        with self._database_errors():
            return self._study.queued()

    def add(self, suggestion: Suggestion, queued: FrozenTrial | None = None) -> FrozenTrial:
        """Begin a trial. queued: the waiting trial that it replaces."""
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(suggestion.params),
            distributions=dict(suggestion.distributions),
            user_attrs={**(queued.user_attrs if queued else {}), **suggestion.user_attrs(self._num_reports())},
            system_attrs=queued.system_attrs if queued else {},
        )
        trial.number = len(self._trials)
        trial._trial_id = queued._trial_id if queued else trial._trial_id
        with self._database_errors():
            self._study.write(trial, queued)
        self._trials.append(trial)
        return trial

    def trials_with_report(self, number: int, report: EvalReport, node: str | None = None) -> list[FrozenTrial]:
        """All trials as they would be with the next report of trial `number`; nothing is written. node: the host that
        trained the epoch. Raises RecordError if a report of an earlier epoch is missing."""
        trials = self.trials()
        recorded = len(trials[number].user_attrs[REPORTS])
        if report.epoch != recorded + 1:
            raise RecordError(f"trial {number}: report {report.epoch} came after report {recorded}")
        trials[number] = with_report(trials[number], report, self._num_reports(), self.search.objective, node)
        return trials

    def append_report(self, trial: FrozenTrial, decision: Decision) -> None:
        """Write a trial of `trials_with_report` and the decision on its report, in one transaction. If the decision
        ends the trial, it is COMPLETE or PRUNED with the value of this epoch. Raises RecordError."""
        if decision.kept:
            trial.user_attrs[REPORTS][-1][KEPT] = decision.kept
        if decision.action != "continue":
            trial.user_attrs[DECISION] = asdict(decision)
            trial.values, trial.datetime_complete = self._final_values(trial, decision), _end_of(trial)
            trial.state = TrialState.COMPLETE if decision.action == "complete" else TrialState.PRUNED
            _set_constraints(trial, excesses(trial, self.search, is_over=True))
        self._write(trial)

    def _final_values(self, trial: FrozenTrial, decision: Decision) -> list[float] | None:
        """The values of an ended trial: of its last epoch, or with several objectives of its best."""
        if self.search.is_multi_objective:
            values = objective_values(trial, self.search)
            return list(values.values()) if values else None
        return None if decision.value is None else [decision.value]

    def set_known(self, number: int, known: Mapping[str, float]) -> Decision:
        """Record what was measured before training, and end a trial that violates a limit on it. Returns the decision
        whether the trial is trained."""
        trial = copy.copy(self._trials[number])
        trial.user_attrs = {**trial.user_attrs, KNOWN: dict(known)}
        _set_constraints(trial, excesses(trial, self.search, is_over=False))
        decision = decide_start(trial, self.search)
        if decision.action == "prune":
            trial.user_attrs[DECISION] = asdict(decision)
            trial.state, trial.datetime_complete = TrialState.PRUNED, _end_of(trial)
        self._write(trial)
        return decision

    def add_failure(self, number: int, error: str) -> None:
        """Record that the trial's process or node died."""
        self._append(number, FAILURES, {"error": error})

    def add_migration(self, number: int, reason: str) -> None:
        """Record that the trial's node was taken."""
        self._append(number, MIGRATIONS, {"why": reason})

    def _append(self, number: int, key: str, event: Mapping[str, str]) -> None:
        trial = copy.copy(self._trials[number])
        events = [*trial.user_attrs.get(key, []), {"epoch": len(trial.user_attrs[REPORTS]), **event}]
        trial.user_attrs = {**trial.user_attrs, key: events}
        self._write(trial)

    def fail(self, number: int, error: str) -> None:
        """End a trial as FAIL, which says nothing about its configuration."""
        trial = copy.copy(self._trials[number])
        trial.user_attrs = {**trial.user_attrs, ERROR: {"text": error, "trials": len(self._trials)}}
        trial.state, trial.datetime_complete = TrialState.FAIL, _end_of(trial)
        self._write(trial)

    def set_metadata(self, key: str, value: Any) -> None:
        """Write a JSON-ready fact about the whole search. Raises RecordError."""
        with self._database_errors():
            self._study.set_metadata(key, value)

    def metadata(self) -> dict[str, Any]:
        """All facts about the whole search. Raises RecordError."""
        with self._database_errors(ValueError):
            return self._study.metadata()

    def _write(self, trial: FrozenTrial) -> None:
        """Replace a trial with a changed copy. Other threads may still hold the old one."""
        with self._database_errors():
            self._study.write(trial, self._trials[trial.number])
        self._trials[trial.number] = trial

    def _num_reports(self) -> int:
        return sum(len(trial.user_attrs[REPORTS]) for trial in self._trials)


def _set_constraints(trial: FrozenTrial, excesses: Mapping[str, float]) -> None:
    """Set Optuna's constraints of a copied trial."""
    trial.system_attrs = dict(trial.system_attrs)
    for name in excesses.keys() - trial.constraints.keys():
        trial.set_constraint(name, excesses[name])


def _end_of(trial: FrozenTrial) -> datetime:
    """Now, but never before the start: a clock that was set back must not make a negative duration."""
    return max(datetime.now(), trial.datetime_start or datetime.min)


def _unusable(place: str, error: Exception) -> RecordError:
    """The error for a database that is not damaged."""
    cause = describe_error(error)
    if "disk is full" in cause:
        return RecordError(describe_os_error(OSError(errno.ENOSPC, "", place)))
    if "locked" in cause:
        return RecordError(f"{place}: held by another process ({cause})")
    return RecordError(f"{place}: cannot be written or read ({cause})")


def _study_of(folder: Path, about: Mapping[str, Any], read_only: bool = False) -> tuple[str, str]:
    """The URL of a search's study, and its name there: that of its creation, since the folder may have been renamed.
    One database may hold two searches named `first`, so that the name has the search's id there."""
    url: str | None = about["search"].get("study_url")
    if url:
        return url, f"{about['name']}-{about['id']}"
    return file_url(folder / STUDY_FILE, read_only=read_only), about["name"]
