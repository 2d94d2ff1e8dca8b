"""The record of a search: its folder, search.json, the Optuna study, the lock. One writer: the driver."""

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
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

import search_spaces
from hpo.policy import plugins
from hpo.policy.pruning import Decision
from hpo.policy.sampling import Suggestion
from hpo.policy.search_config import CHANGEABLE, SEARCH_FILE, SearchConfig, check_name, is_name
from hpo.policy.trial_attributes import DECISION, ERROR, FAILURES, KEPT, MIGRATIONS, REPORTS
from hpo.policy.trial_history import with_report
from hpo.store import integrity
from hpo.store.layout import LOCK_FILE, STUDY_FILE
from hpo.store.lock import acquire_lock
from hpo.store.object_storage import Storage
from hpo.store.study_database import Study, check_file, describe_error, file_url
from model.common.errors import ConfigError, MachineError
from model.common.files import check_writable, describe_os_error, write_atomically
from model.common.git import git_commit
from model.common.text import did_you_mean
from model.training_report import EvalReport

_PACKAGES = ("ray", "optuna", "torch", "numpy", "wandb")
_ID = "search_id"  # note on the study: whose it is
_DATABASE_ERRORS = (sqlite3.Error, SQLAlchemyError, StorageInternalError)
_DAMAGED = ("malformed", "not a database", "no such table", "no such column", "file format")


class RecordError(MachineError):
    """A record that cannot be read, or that somebody else is writing."""


class DamagedError(RecordError):
    """One that is not what was written; another copy of it may be."""


class Record:
    """An existing search; `create` makes one. Trials are read as Optuna's FrozenTrial, in order of their numbers.

    read_only: not a byte is written, not even what SQLite would mend; for who watches a search that others run.
    waits: for a database server that is away; for drivers, and who watches them.
    storage: the search's part of it, where it has one; the folder is a copy then (hpo/store/replication.py).
    sync: downloads what is newer in the storage into the folder.
    user_folder: where users look for the search, when `runs` is a temporary folder.
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
        self._read_only = read_only
        self._open = partial(self._open_study, read_only, waits)
        self._study, self._trials = self._open()

    def _read_search(self) -> None:
        path = self.folder / SEARCH_FILE
        try:
            self.about, self.search = parse_search_file(path.read_bytes(), path)
        except (FileNotFoundError, NotADirectoryError):
            raise not_found(self.folder.parent, self.name) from None
        self.id: str = self.about["id"]

    def _open_study(self, read_only: bool, waits: bool) -> tuple[Study, list[FrozenTrial]]:
        """And its trials. Raises RecordError where it is gone or damaged; StudyAwayError."""
        if self.study_file and not self.study_file.exists():
            raise DamagedError(f"{self.study_file}: is gone, and with it the trials; {self._remedy}")
        url, name = _study_of(self.folder, self.about, read_only)
        with self._telling(Exception):  # json's too, of a damaged row; RuntimeError: tables of another Optuna
            if self.study_file:
                check_file(self.study_file, read_only=read_only)
            try:
                study = Study(url, name, read_only=read_only, waits=waits)
            except KeyError:
                raise DamagedError(f"{self.study_place}: has no study {name}; {self._remedy}") from None
            of = study.metadata().get(_ID, self.id)
        if of != self.id:
            raise DamagedError(f"{self.study_place}: is another search's, {of} and not {self.id}; {self._remedy}")
        return study, self._read_trials(study)

    def _read_trials(self, study: Study) -> list[FrozenTrial]:
        """Whole ones; those that wait to be run are none yet. Raises RecordError, StudyAwayError."""
        with self._telling(Exception):
            trials = study.trials()
        while trials and trials[-1].state == TrialState.WAITING:
            trials.pop()
        for place, trial in enumerate(trials):
            if wrong := "number" if trial.number != place else integrity.trial_problem(trial, self.search.objective):
                raise DamagedError(f"{self.study_place}: damaged (trial {place}: its {wrong}); {self._remedy}")
        return trials

    @contextmanager
    def _telling(self, *others: type[Exception]) -> Iterator[None]:
        """What goes wrong with the database, as RecordError; others: are signs of damage, too."""
        try:
            yield
        except (ConfigError, MachineError):  # they say all there is to say
            raise
        except Exception as error:
            if not isinstance(error, (*_DATABASE_ERRORS, *others)):
                raise
            why = describe_error(error)
            if "readonly database" in why and self._read_only:  # a journal is left, and must not be played back
                raise RecordError(
                    f"{self.study_place}: its driver died while it wrote; `hpo show {self.name}` mends that"
                ) from error
            if not isinstance(error, _DATABASE_ERRORS) or any(sign in why for sign in _DAMAGED):
                raise DamagedError(f"{self.study_place}: damaged ({why}); {self._remedy}") from error
            raise _unusable(self.study_place, error) from error

    @property
    def _remedy(self) -> str:
        return f"{'put a copy of it in its place, or ' * bool(self.study_file)}delete {self.folder} to start anew"

    @property
    def study_place(self) -> str:
        """A file or a URL, for who is told of it."""
        return self.search.study_url or str(self.folder / STUDY_FILE)

    @classmethod
    def exists(cls, runs: Path, name: str) -> bool:
        """Raises ConfigError for what cannot be a name."""
        return (runs / check_name(name) / SEARCH_FILE).exists()

    @classmethod
    def create(cls, runs: Path, name: str, search: SearchConfig) -> Record:
        """Raises ConfigError for a space that cannot be searched, and where the folder cannot be made."""
        folder = runs / check_name(name)
        check_writable(folder, "--runs")
        about = {
            "format": 1,
            "name": name,
            "id": secrets.token_hex(4),  # two people's `first` must not meet in W&B
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "search": search.as_dict(),
            "space": search_spaces.load(search.space).check(search.base_config(), search.set),
            "files": plugins.digests(search),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            "git_commit": git_commit(),
        }
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with closing(acquire_lock(folder, name)):
            if (folder / SEARCH_FILE).exists():  # since who asked for it looked
                raise ConfigError(f"{name}: another driver has just begun it; leave its options out to continue it")
            try:
                # The study first: where search.json stands, a study that is missing was lost, and is not begun anew.
                Study.create(*_study_of(folder, about), {} if search.study_url else {_ID: about["id"]})
                write_atomically(folder / SEARCH_FILE, json.dumps(about, indent=2).encode())
            except _DATABASE_ERRORS as error:
                raise _unusable(str(folder / STUDY_FILE), error) from error
            except ConfigError:  # the database refuses
                (folder / LOCK_FILE).unlink()
                for path in new:
                    path.rmdir()
                raise
        return cls(runs, name, waits=True)

    def update_config(self, asked: Mapping[str, Any]) -> None:
        """Take up what was asked of a search that exists. Raises ConfigError, with the difference, for the rest."""
        was = self.search.as_dict()
        now = SearchConfig(**{**was, **asked}).as_dict()
        check_compatible(self.name, self.about, self.search, asked)
        if now != was:
            self.search = SearchConfig(**now)
            self.about["search"] = now
            write_atomically(self.folder / SEARCH_FILE, json.dumps(self.about, indent=2).encode())

    def sync(self) -> None:
        """Download what is newer in the storage. Raises RecordError, StorageError."""
        if self._sync:
            self._sync()

    def refresh(self) -> None:
        """As it is now, for who watches while another writes. Raises RecordError, StorageError."""
        self.sync()
        self._read_search()
        if self.storage and self.study_file:  # another file than before
            self._study, self._trials = self._open()
        else:
            self._trials = self._read_trials(self._study)

    # --- trials ----------------------------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """All of them, as they are now; a change puts a new value in the place of the old."""
        return list(self._trials)

    def trial(self, number: int) -> FrozenTrial:
        """Raises ConfigError where there is none."""
        if not 0 <= number < len(self._trials):
            raise ConfigError(f"trial={number}: {self.name} has the trials 0 to {len(self._trials) - 1}")
        return self._trials[number]

    def trial_folder(self, number: int) -> Path:
        """Of its checkpoints and strips. What is read there is to be `here` first."""
        return self.folder / "trials" / f"{number:05}"

    def fetch(self, path: Path) -> Path:
        """The same file or folder of the search, as the storage has it, or has it not. Raises StorageError."""
        if self.storage:
            self.storage.fetch(path.relative_to(self.folder).as_posix(), path)
        return path

    def has_file(self, path: Path) -> bool:
        """Whether the search has that file; it need not be here."""
        return self.storage.exists(path.relative_to(self.folder).as_posix()) if self.storage else path.exists()

    def queued(self) -> FrozenTrial | None:
        """The next trial that somebody has put into the study with Optuna's enqueue_trial."""
        with self._telling():
            return self._study.queued()

    def add(self, suggestion: Suggestion, queued: FrozenTrial | None = None) -> FrozenTrial:
        """A trial under way. queued: the one that waited for it."""
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(suggestion.params),
            distributions=dict(suggestion.distributions),
            user_attrs={**(queued.user_attrs if queued else {}), **suggestion.user_attrs(self._num_reports())},
            system_attrs=queued.system_attrs if queued else {},
        )
        trial.number = len(self._trials)
        trial._trial_id = queued._trial_id if queued else trial._trial_id
        with self._telling():
            self._study.write(trial, queued)
        self._trials.append(trial)
        return trial

    def trials_with_report(self, number: int, report: EvalReport, node: str | None = None) -> list[FrozenTrial]:
        """All trials as they would be with another report of trial `number`; nothing is written.

        Args:
            number: the trial's.
            report: of its next epoch.
            node: the host that trained the epoch; None: not known.

        Raises:
            RecordError: a report of an earlier epoch is missing.
        """
        trials = self.trials()
        recorded = len(trials[number].user_attrs[REPORTS])
        if report.epoch != recorded + 1:
            raise RecordError(f"trial {number}: report {report.epoch} came after report {recorded}")
        trials[number] = with_report(trials[number], report, self._num_reports(), self.search.objective, node)
        return trials

    def append_report(self, number: int, report: EvalReport, decision: Decision, node: str | None = None) -> None:
        """Write a report and the decision on it, in one transaction.

        Args:
            number: the trial's.
            report: of its next epoch.
            decision: if it ends the trial, the trial is COMPLETE or PRUNED with the value of this epoch.
            node: the host that trained the epoch; None: not known.

        Raises:
            RecordError: a report of an earlier epoch is missing, or the database cannot be written.
        """
        trial = self.trials_with_report(number, report, node)[number]
        if decision.kept:
            trial.user_attrs[REPORTS][-1][KEPT] = decision.kept
        if decision.action != "continue":
            trial.user_attrs[DECISION] = asdict(decision)
            trial.values, trial.datetime_complete = [decision.value], _end_of(trial)
            trial.state = TrialState.COMPLETE if decision.action == "complete" else TrialState.PRUNED
        self._write(trial)

    def add_failure(self, number: int, error: str) -> int:
        """A death of its process or node; gives how many there were. It counts over restarts of the driver too."""
        return self._append(number, FAILURES, {"error": error})

    def add_migration(self, number: int, why: str) -> int:
        """As above, where its node was taken."""
        return self._append(number, MIGRATIONS, {"why": why})

    def _append(self, number: int, key: str, event: Mapping[str, str]) -> int:
        trial = copy.copy(self._trials[number])
        events = [*trial.user_attrs.get(key, []), {"epoch": len(trial.user_attrs[REPORTS]), **event}]
        trial.user_attrs = {**trial.user_attrs, key: events}
        self._write(trial)
        return len(events)

    def fail(self, number: int, error: str) -> None:
        """FAIL: the machine's fault, no evidence for or against its configuration."""
        trial = copy.copy(self._trials[number])
        trial.user_attrs = {**trial.user_attrs, ERROR: {"text": error, "trials": len(self._trials)}}
        trial.state, trial.datetime_complete = TrialState.FAIL, _end_of(trial)
        self._write(trial)

    def set_metadata(self, key: str, value: Any) -> None:
        """A JSON-ready fact about the whole search."""
        with self._telling():
            self._study.set_metadata(key, value)

    def metadata(self) -> dict[str, Any]:
        """All such facts. Raises RecordError."""
        with self._telling(ValueError):
            return self._study.metadata()

    def _write(self, trial: FrozenTrial) -> None:
        """A changed copy, in the place of what it was: who was given the trial before, in whatever thread, keeps what
        was true then."""
        with self._telling():
            self._study.write(trial, self._trials[trial.number])
        self._trials[trial.number] = trial

    def _num_reports(self) -> int:
        return sum(len(trial.user_attrs[REPORTS]) for trial in self._trials)


def _end_of(trial: FrozenTrial) -> datetime:
    """Now; but a clock that was set back meanwhile makes no negative durations, here or in Optuna's tools."""
    return max(datetime.now(), trial.datetime_start or datetime.min)


def _unusable(place: str, error: Exception) -> RecordError:
    """For reasons that are not in the study itself."""
    why = describe_error(error)
    if "disk is full" in why:
        return RecordError(describe_os_error(OSError(errno.ENOSPC, "", place)))
    if "locked" in why:
        return RecordError(f"{place}: held by another process ({why})")
    return RecordError(f"{place}: cannot be written or read ({why})")


def read_about(content: bytes, where: object) -> dict[str, Any]:
    """What a search.json has, its search not yet looked at. Raises DamagedError."""
    try:
        about: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where}: damaged ({error})") from error
    if wrong := integrity.search_file_problem(about):
        raise DamagedError(f"{where}: damaged ({wrong})")
    return about


def parse_search_file(content: bytes, where: object) -> tuple[dict[str, Any], SearchConfig]:
    """The same, and what it asks for. Raises DamagedError."""
    about = read_about(content, where)
    try:
        return about, SearchConfig.from_dict(about["search"])
    except (ConfigError, TypeError) as error:  # TypeError: fields of another version
        raise DamagedError(f"{where}: damaged ({error})") from error


def check_compatible(name: str, about: Mapping[str, Any], search: SearchConfig, asked: Mapping[str, Any]) -> None:
    """Raises ConfigError, with the difference, where a search that exists is asked to be another."""
    was = search.as_dict()
    files: Mapping[str, str] = about.get("files", {})  # of the options that may move, but not change
    may_change = CHANGEABLE | {option for option in files if str(asked.get(option)).endswith(".py")}
    refused = [field for field in was if asked.get(field, was[field]) != was[field] and field not in may_change]
    differences = [f"  {field}: it has {was[field]}, asked for {asked[field]}" for field in refused]
    for option, began_with in files.items():
        path = asked.get(option, was[option])
        if plugins.digest(path) not in (began_with, None):  # one that is not there is told by who needs it
            differences.append(f"  {option}: {path} is not the file that it began with (SHA-256 {began_with[:12]}...)")
    if not refused:  # of the space's source only what it yields is compared
        space = search_spaces.load(str(asked.get("space", was["space"])))
        differences += [f"  space: {line}" for line in space.differences(about["space"], search.base_config())]
    if differences:
        raise ConfigError(
            f"{name}: this search exists, and its trials could no longer be compared:\n"
            + "\n".join([*differences, "Leave these options out to continue it, or choose another name."])
        )


_OF_A_START = {STUDY_FILE, f"{STUDY_FILE}-journal", LOCK_FILE}  # what a driver leaves that is killed before search.json


def check_free(folder: Path) -> None:
    """Raises ConfigError where a new search would get into somebody's file or folder, which `hpo rm` would delete."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; choose another name, or another folder with --runs")
    others = [path.name for path in folder.glob("*") if path.name not in _OF_A_START and path.name[0] != "."]
    if others:
        raise ConfigError(
            f"{folder}: is a folder with other things in it, such as {min(others)}; choose another name, or another "
            "folder with --runs"
        )


def list_names(runs: Path) -> list[str]:
    """The searches in a folder; what has no search's name is somebody else's."""
    return sorted(path.parent.name for path in runs.glob(f"*/{SEARCH_FILE}") if is_name(path.parent.name))


def _study_of(folder: Path, about: Mapping[str, Any], read_only: bool = False) -> tuple[str, str]:
    """Its URL and its name there: the one that it was made with, since the folder may have got another; and one
    database may hold two people's `first`."""
    url: str | None = about["search"].get("study_url")
    if url:
        return url, f"{about['name']}-{about['id']}"
    return file_url(folder / STUDY_FILE, read_only=read_only), about["name"]


def not_found(runs: Path, name: str) -> ConfigError:
    """The error for it, with the nearest that is there."""
    return not_found_in(str(runs), name, list_names(runs))


def not_found_in(where: str, name: str, names: list[str]) -> ConfigError:
    """The same, for any place where searches are."""
    others = did_you_mean(name, names) if names else "There are none yet; `hpo search NAME` starts one."
    return ConfigError(f"{name}: no such search in {where}. {others}")
