"""A search's trials in Optuna's own tables, which all of Optuna's tools read: one writer, one transaction per event.

This is the only module that writes into Optuna's private tables. Optuna's own storages write each parameter, value and
attribute separately, so a kill in between leaves half an event: an epoch's value without its report. JournalStorage is
fast enough, but RDBStorage takes tens of milliseconds per event in the loop that hands out trials (docs/search.md).

The database is a file, or PostgreSQL on another machine. If the server is away, operations are retried, and a commit
whose answer was lost is looked up before it is written again.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.distributions import distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, Connection, TextClause, event, insert, select, update
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from hpo.policy.objectives import Direction
from model.common.errors import ConfigError, MachineError
from model.common.retry import Outage, retry

optuna.logging.set_verbosity(optuna.logging.WARNING)
T = TypeVar("T")

TIMEOUT_SECONDS = 300.0
_LOCKED_SECONDS = 60  # how long SQLite waits for another process; its default is 5
_SERVER = "postgresql:"
# Without them a machine that is gone, or a cable that is pulled, is noticed after minutes or hours.
_NETWORK = {
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,  # milliseconds
    "keepalives_idle": 10,
    "keepalives_interval": 10,
    "keepalives_count": 2,
}
# Every writing transaction takes this lock, so that the lookup of a lost commit waits until the server has settled it.
# A transaction whose client is gone is settled within a minute.
_ROW_LOCK = TextClause(
    "SELECT set_config('idle_in_transaction_session_timeout', '60s', true) FROM studies WHERE study_id = :study "
    "FOR NO KEY UPDATE NOWAIT"
)
_TRIALS = models.TrialModel.__table__
_PARAMS = models.TrialParamModel.__table__
_ATTRS = models.TrialUserAttributeModel.__table__
_SYSTEM_ATTRS = models.TrialSystemAttributeModel.__table__
_STEPS = models.TrialIntermediateValueModel.__table__
_VALUES = models.TrialValueModel.__table__


class StudyAwayError(MachineError):
    """The database server does not answer, or refuses access. Nothing is lost."""


class Study:
    """An existing Optuna study; `create` makes one."""

    def __init__(self, url: str, name: str, *, read_only: bool = False, waits: bool = False) -> None:
        """Open the study.

        Args:
            url: `file_url`'s, or postgresql://USER@HOST/DATABASE with the password in PGPASSWORD or ~/.pgpass.
            read_only: open a server's database read-only. The URL of a file says so itself.
            waits: retry for TIMEOUT_SECONDS while the server is unreachable. After one timeout, later calls fail at
                once.

        Raises:
            KeyError: the study does not exist.
            SQLAlchemy's DatabaseError; with a server StudyAwayError, ConfigError.
        """
        self._url, self._is_server = url, url.startswith(_SERVER)
        self._timeout_seconds = TIMEOUT_SECONDS if waits else 0.0
        self._outage = Outage()
        self._storage = self._with_retries(lambda: _open_storage(url, read_only))
        self._id = self._with_retries(lambda: self._storage.get_study_id_from_name(name))

    @staticmethod
    def create(
        url: str, name: str, metadata: Mapping[str, Any], directions: Sequence[Direction] = ("maximize",)
    ) -> None:
        """Create a study unless it exists. Raises ConfigError if a server refuses. directions: of its objectives."""
        try:
            study = optuna.create_study(
                study_name=name, storage=_open_storage(url), directions=list(directions), load_if_exists=True
            )
            for key, value in metadata.items():
                study.set_user_attr(key, value)
        except (SQLAlchemyError, StorageInternalError) as error:
            if not url.startswith(_SERVER):
                raise
            raise ConfigError(f"study_url={url}: {describe_error(error)}") from error

    def trials(self) -> list[FrozenTrial]:
        """All trials as they are in the database, by number."""
        return self._with_retries(lambda: self._storage.get_all_trials(self._id, deepcopy=False))

    def queued(self) -> FrozenTrial | None:
        """The first trial that waits to be run. Any program may add one with Optuna's enqueue_trial."""
        waiting = select(_TRIALS.c.trial_id).filter_by(study_id=self._id, state=TrialState.WAITING)

        def first() -> FrozenTrial | None:
            with self._storage.engine.begin() as connection:
                trial_id = connection.execute(waiting.order_by(_TRIALS.c.number).limit(1)).scalar()
            return None if trial_id is None else self._storage.get_trial(trial_id)

        return self._with_retries(first)

    def write(self, trial: FrozenTrial, previous: FrozenTrial | None) -> None:
        """Write what is new in a trial since `previous`, all or nothing. A new trial gets its id. Attributes must have
        been replaced, not changed in place."""
        self._with_retries(lambda: self._write(trial, previous))

    def _write(self, trial: FrozenTrial, previous: FrozenTrial | None) -> None:
        with self._storage.engine.begin() as connection:
            if self._is_server:
                connection.execute(_ROW_LOCK, {"study": self._id})
                if (self._outage.is_on or previous is None) and self._is_written(trial, previous):
                    return
            if previous is None:
                trial._trial_id = self._insert(connection, trial)
            elif trial.state != previous.state:
                row = {
                    "state": trial.state,
                    "datetime_start": _utc(trial.datetime_start),
                    "datetime_complete": _utc(trial.datetime_complete),
                }
                connection.execute(update(_TRIALS).where(_TRIALS.c.trial_id == trial._trial_id), row)
            _write_params(connection, trial, previous.params if previous else {})
            known = (previous.user_attrs, previous.system_attrs) if previous else ({}, {})
            _write_attrs(connection, _ATTRS, trial, trial.user_attrs, known[0])
            _write_attrs(connection, _SYSTEM_ATTRS, trial, trial.system_attrs, known[1])
            _write_values(connection, trial, previous)

    def _insert(self, connection: Connection, trial: FrozenTrial) -> int:
        """Insert the trial's row and return its id. Raises MachineError if another program has taken its number."""
        row: dict[str, Any] = {"study_id": self._id, "number": trial.number}
        if connection.execute(select(_TRIALS.c.trial_id).filter_by(**row)).first():
            raise MachineError(
                f"trial {trial.number} was added by another program this moment; run the same command to continue"
            )
        row |= {"state": trial.state, "datetime_start": _utc(trial.datetime_start)}
        result = connection.execute(insert(_TRIALS), row)
        assert result.inserted_primary_key is not None
        return int(result.inserted_primary_key[0])

    def _is_written(self, trial: FrozenTrial, previous: FrozenTrial | None) -> bool:
        """Whether a commit without an answer took place. Raises MachineError if the database has a third version."""
        try:
            trial._trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
        except KeyError:
            return False
        stored = self._storage.get_trial(trial._trial_id)
        if stored not in (previous, trial):
            raise MachineError(f"{self._url}: trial {trial.number} was written by another driver meanwhile")
        return stored == trial

    def set_metadata(self, key: str, value: Any) -> None:
        """Set a JSON-ready fact about the whole study."""
        self._with_retries(lambda: self._storage.set_study_user_attr(self._id, key, value))

    def metadata(self) -> dict[str, Any]:
        """All facts about the whole study."""
        return self._with_retries(lambda: self._storage.get_study_user_attrs(self._id))

    def _with_retries(self, operation: Callable[[], T]) -> T:
        def is_away(error: Exception) -> bool:
            if not self._is_server or not isinstance(error, SQLAlchemyError | StorageInternalError):
                return False
            cause = _database_error(error)
            is_closed = isinstance(cause, DBAPIError) and cause.connection_invalidated
            return is_closed or isinstance(cause, OperationalError | InterfaceError)

        try:
            result = retry(
                operation,
                is_transient=is_away,
                timeout_seconds=self._timeout_seconds,
                on_failure=lambda e: self._outage.started(self._url, describe_error(e), self._timeout_seconds),
            )
        except (SQLAlchemyError, StorageInternalError) as error:
            if not is_away(error):
                raise
            self._timeout_seconds = 0.0  # a driver that ends because of this does not wait again
            raise StudyAwayError(f"{self._url}: {describe_error(error)}") from error
        self._outage.ended(self._url)
        return result


def _write_params(connection: Connection, trial: FrozenTrial, known: Mapping[str, Any]) -> None:
    for name in [name for name in trial.params if name not in known]:  # in their order, which a later draw depends on
        distribution = trial.distributions[name]
        row = {
            "trial_id": trial._trial_id,
            "param_name": name,
            "param_value": distribution.to_internal_repr(trial.params[name]),
            "distribution_json": distribution_to_json(distribution),
        }
        connection.execute(insert(_PARAMS), row)


def _write_attrs(
    connection: Connection, table: Any, trial: FrozenTrial, attrs: Mapping[str, Any], known: Mapping[str, Any]
) -> None:
    for key, value in attrs.items():
        if key not in known:
            row = {"trial_id": trial._trial_id, "key": key, "value_json": json.dumps(value)}
            connection.execute(insert(table), row)
        elif value is not known[key]:
            is_row = (table.c.trial_id == trial._trial_id) & (table.c.key == key)
            connection.execute(update(table).where(is_row), {"value_json": json.dumps(value)})


def _write_values(connection: Connection, trial: FrozenTrial, previous: FrozenTrial | None) -> None:
    for step in sorted(trial.intermediate_values.keys() - (previous.intermediate_values if previous else {})):
        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(
            trial.intermediate_values[step]
        )
        row = {"trial_id": trial._trial_id, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}
        connection.execute(insert(_STEPS), row)
    for objective, value in enumerate(trial.values or () if not (previous and previous.values) else ()):
        stored_value, value_type = models.TrialValueModel.value_to_stored_repr(value)
        value_row = {
            "trial_id": trial._trial_id,
            "objective": objective,
            "value": stored_value,
            "value_type": value_type,
        }
        connection.execute(insert(_VALUES), value_row)


def file_url(path: Path, *, read_only: bool = False) -> str:
    """The URL of a database in a file. The path may have any character: SQLite takes %XX, Optuna's template no braces,
    and SQLAlchemy quotes once more what it will unquote (from 2.1 on)."""
    query = {"mode": "ro" if read_only else "rwc", "uri": "true"}
    return URL.create("sqlite", database=path.absolute().as_uri(), query=query).render_as_string()


def check_file(path: Path, *, read_only: bool) -> None:
    """Check that a file is an intact SQLite database with a study; Optuna would create missing tables in any file.
    Unless read_only, the journal of a driver that was killed while writing is rolled back. Raises sqlite3.Error,
    ValueError."""
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    with closing(sqlite3.connect(uri, timeout=_LOCKED_SECONDS, uri=True)) as connection:
        (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if result != "ok":
            raise ValueError(result.splitlines()[-1])
        connection.execute("SELECT 1 FROM studies")


def describe_error(error: BaseException) -> str:
    """An error of SQLAlchemy or of Optuna's storage in one line, in the database's own words."""
    cause = _database_error(error)
    message = str(cause.orig if isinstance(cause, DBAPIError) else cause).strip().partition("\n")[0]
    return message or type(cause).__name__


def _database_error(error: BaseException) -> BaseException:
    """The database driver's error behind an error of Optuna's."""
    while not isinstance(error, DBAPIError) and (cause := error.__cause__ or error.__context__):
        error = cause
    return error


def _open_storage(url: str, read_only: bool = False) -> RDBStorage:
    if not url.startswith(_SERVER):
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _LOCKED_SECONDS}})
        # Python's sqlite3 begins no transaction for reading: each SELECT of a trial would see another state.
        event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        return storage
    password = os.environ.get("PGPASSWORD")  # read now: a driver removes it from what Ray's processes would inherit
    options: dict[str, Any] = {
        "connect_args": {**_NETWORK, **({"password": password} if password else {})},
        "pool_pre_ping": True,  # an idle connection may have been closed between two reports
        "isolation_level": "REPEATABLE READ",  # several statements of a reader see the same events
        "execution_options": {"postgresql_readonly": read_only},
    }
    try:
        return RDBStorage(url.replace(_SERVER, "postgresql+psycopg:", 1), engine_kwargs=options)
    except ImportError as error:
        raise ConfigError(f"study_url: PostgreSQL needs psycopg: pip install 'psycopg[binary]' ({error})") from error
    except RuntimeError as error:  # tables of another version of Optuna
        raise ConfigError(f"study_url={url}: {error}") from error


def _utc(time: datetime | None) -> datetime | None:
    """Optuna 5 stores times in UTC without a time zone."""
    return time and time.astimezone(UTC).replace(tzinfo=None)
