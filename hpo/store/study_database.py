"""A search's trials in Optuna's own tables: one writer, one transaction an event. Optuna, and all its tools, read them.

Optuna's storage looks a trial up again for each parameter and attribute and commits each on its own: tens of
milliseconds an event (docs/log.md), in the loop that hands out trials, and a kill in between leaves half an event.

The database is a file, or PostgreSQL on another machine. That one may be away: it is waited for, and a commit whose
answer was lost is looked for before it is written again.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
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

from model.common.errors import ConfigError, MachineError

optuna.logging.set_verbosity(optuna.logging.WARNING)
log = logging.getLogger(__name__)
R = TypeVar("R")

TIMEOUT_SECONDS = 300.0
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0  # between two tries; each pause is twice the last
_LOCKED_SECONDS = 60  # SQLite's patience with another process; its default is 5
_SERVER = "postgresql:"
# Without them a machine that is gone, or a cable that is pulled, is noticed after minutes or hours.
_NETWORK = {
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,  # milliseconds
    "keepalives_idle": 10,
    "keepalives_interval": 10,
    "keepalives_count": 2,
}
# Held by every writing transaction, so that a look for a lost one waits until the server has settled it; one that its
# client has abandoned is settled in a minute.
_CLAIM = TextClause(
    "SELECT set_config('idle_in_transaction_session_timeout', '60s', true) FROM studies WHERE study_id = :study "
    "FOR NO KEY UPDATE NOWAIT"
)
_TRIALS = models.TrialModel.__table__
_PARAMS = models.TrialParamModel.__table__
_ATTRS = models.TrialUserAttributeModel.__table__
_STEPS = models.TrialIntermediateValueModel.__table__
_VALUES = models.TrialValueModel.__table__


class StudyAwayError(MachineError):
    """The server does not answer, or does not let us in. Nothing is lost."""


class Study:
    """One that exists; `create` makes one.

    url: file_url's, or postgresql://USER@HOST/DATABASE, its password in PGPASSWORD or ~/.pgpass. read_only: of a
    server; a file's URL says it itself. waits: PATIENCE_SECONDS for a server that is away; if in vain, never again.

    Raises KeyError where it is not there, SQLAlchemy's DatabaseError; with a server StudyAwayError, ConfigError.
    """

    def __init__(self, url: str, name: str, *, read_only: bool = False, waits: bool = False) -> None:
        self._url, self._is_served = url, url.startswith(_SERVER)
        self._patience = TIMEOUT_SECONDS if waits else 0.0
        self._storage = self._answered(lambda _: _storage(url, read_only))
        self._id = self._answered(lambda _: self._storage.get_study_id_from_name(name))

    @staticmethod
    def create(url: str, name: str, notes: Mapping[str, Any]) -> None:
        """Or leave the one that is there. Objectives are to be maximised. Raises ConfigError where a server refuses."""
        try:
            study = optuna.create_study(
                study_name=name, storage=_storage(url), direction="maximize", load_if_exists=True
            )
            for key, value in notes.items():
                study.set_user_attr(key, value)
        except (SQLAlchemyError, StorageInternalError) as error:
            if not url.startswith(_SERVER):
                raise
            raise ConfigError(f"study_url={url}: {describe_error(error)}") from error

    def trials(self) -> list[FrozenTrial]:
        """As they are on disk, by number."""
        return self._answered(lambda _: self._storage.get_all_trials(self._id, deepcopy=False))

    def queued(self) -> FrozenTrial | None:
        """The first trial that waits to be run: Optuna's enqueue_trial puts it there, in whatever program."""
        waiting = select(_TRIALS.c.trial_id).filter_by(study_id=self._id, state=TrialState.WAITING)

        def first(_: bool) -> FrozenTrial | None:
            with self._storage.engine.begin() as connection:
                found = connection.execute(waiting.order_by(_TRIALS.c.number).limit(1)).scalar()
            return None if found is None else self._storage.get_trial(found)

        return self._answered(first)

    def write(self, now: FrozenTrial, was: FrozenTrial | None) -> None:
        """What is new in a trial, all or nothing. was: the trial as it was written last; None: never, and it gets its
        id. Values of attributes are exchanged, not changed in place.
        """
        self._answered(lambda again: self._write(now, was, again))

    def _write(self, now: FrozenTrial, was: FrozenTrial | None, again: bool) -> None:
        with self._storage.engine.begin() as connection:
            if self._is_served:
                connection.execute(_CLAIM, {"study": self._id})
                if (again or was is None) and self._is_written(now, was):
                    return
            if was is None:
                now._trial_id = self._insert(connection, now)
            elif now.state != was.state:
                times = {"datetime_start": _utc(now.datetime_start), "datetime_complete": _utc(now.datetime_complete)}
                connection.execute(
                    update(_TRIALS).where(_TRIALS.c.trial_id == now._trial_id), {"state": now.state, **times}
                )
            own = {"trial_id": now._trial_id}
            for name, value in now.params.items():
                if was is not None and name in was.params:
                    continue
                of = now.distributions[name]
                row = {**own, "param_name": name, "param_value": of.to_internal_repr(value)}
                connection.execute(insert(_PARAMS), {**row, "distribution_json": distribution_to_json(of)})
            for key, value in now.user_attrs.items():
                known = was is not None and key in was.user_attrs
                if known and value is was.user_attrs[key]:  # type: ignore[union-attr]
                    continue
                text = {"value_json": json.dumps(value)}
                if known:
                    where = (_ATTRS.c.trial_id == now._trial_id) & (_ATTRS.c.key == key)
                    connection.execute(update(_ATTRS).where(where), text)
                else:
                    connection.execute(insert(_ATTRS), {**own, "key": key, **text})
            for step in now.intermediate_values.keys() - (was.intermediate_values if was else {}):
                stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(
                    now.intermediate_values[step]
                )
                row = {**own, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}
                connection.execute(insert(_STEPS), row)
            if now.values and not (was and was.values):
                final, kind_of_final = models.TrialValueModel.value_to_stored_repr(now.values[0])
                final_row = {**own, "objective": 0, "value": final, "value_type": kind_of_final}
                connection.execute(insert(_VALUES), final_row)

    def _insert(self, connection: Connection, trial: FrozenTrial) -> int:
        """Its id. Raises MachineError where its number was taken."""
        row: dict[str, Any] = {"study_id": self._id, "number": trial.number}
        if connection.execute(select(_TRIALS.c.trial_id).filter_by(**row)).first():
            raise MachineError(
                f"trial {trial.number} was added by another program this moment; the same command continues"
            )
        row |= {"state": trial.state, "datetime_start": _utc(trial.datetime_start)}
        result = connection.execute(insert(_TRIALS), row)
        assert result.inserted_primary_key is not None
        return int(result.inserted_primary_key[0])

    def _is_written(self, now: FrozenTrial, was: FrozenTrial | None) -> bool:
        """Whether a commit without an answer took place. Raises MachineError where the trial is neither."""
        try:
            now._trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, now.number)
        except KeyError:
            return False
        found = self._storage.get_trial(now._trial_id)
        if found not in (was, now):
            raise MachineError(f"{self._url}: trial {now.number} was written by another driver meanwhile")
        return found == now

    def set_metadata(self, key: str, value: Any) -> None:
        """A JSON-ready fact about the whole study."""
        self._answered(lambda _: self._storage.set_study_user_attr(self._id, key, value))

    def metadata(self) -> dict[str, Any]:
        """All such facts."""
        return self._answered(lambda _: self._storage.get_study_user_attrs(self._id))

    def _answered(self, attempt: Callable[[bool], R]) -> R:
        """What it gives, tried until the server answers. attempt: is told whether it was tried before."""
        since, pause = None, _PAUSE_SECONDS
        while True:
            try:
                result = attempt(since is not None)
                break
            except (SQLAlchemyError, StorageInternalError) as error:
                if not self._is_served or not _is_away(error):
                    raise
                if since is None and self._patience:
                    log.warning("%s: %s; waiting, %g s at most", self._url, describe_error(error), self._patience)
                since = since or time.monotonic()
                if time.monotonic() - since >= self._patience:
                    self._patience = 0.0  # who still closes things down does not wait again
                    raise StudyAwayError(f"{self._url}: {describe_error(error)}") from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if since is not None:
            log.warning("%s: is back after %.0f s", self._url, time.monotonic() - since)
        return result


def file_url(path: Path, *, read_only: bool = False) -> str:
    """Of a database in a file, for a Study. Whatever the path's characters: SQLite takes %XX, Optuna's template no
    braces, and SQLAlchemy quotes once more what it will unquote (from 2.1 on)."""
    query = {"mode": "ro" if read_only else "rwc", "uri": "true"}
    return URL.create("sqlite", database=path.absolute().as_uri(), query=query).render_as_string()


def check_file(path: Path, *, read_only: bool) -> None:
    """That it is SQLite's, whole, and a study's; what a driver that died left half written is undone, unless read_only.
    Optuna would make its tables anew in any file that lacks them. Raises sqlite3.Error, ValueError."""
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    with closing(sqlite3.connect(uri, timeout=_LOCKED_SECONDS, uri=True)) as connection:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise ValueError(found.splitlines()[-1])
        connection.execute("SELECT 1 FROM studies")


def _is_away(error: BaseException) -> bool:
    """Whether it can be hoped that the same works later."""
    cause = _of_the_driver(error)
    return isinstance(cause, OperationalError | InterfaceError) or (
        isinstance(cause, DBAPIError) and cause.connection_invalidated
    )


def describe_error(error: BaseException) -> str:
    """An error of SQLAlchemy or of Optuna's storage in a line, in the database's own words."""
    cause = _of_the_driver(error)
    said = str(cause.orig if isinstance(cause, DBAPIError) else cause).strip().partition("\n")[0]
    return said or type(cause).__name__


def _of_the_driver(error: BaseException) -> BaseException:
    while not isinstance(error, DBAPIError) and (cause := error.__cause__ or error.__context__):
        error = cause
    return error


def _storage(url: str, read_only: bool = False) -> RDBStorage:
    if not url.startswith(_SERVER):
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _LOCKED_SECONDS}})
        # Python's sqlite3 begins no transaction for what only reads: each SELECT of a trial would see another moment.
        event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        return storage
    password = os.environ.get("PGPASSWORD")  # read now: a driver takes it from what Ray's processes would inherit
    options: dict[str, Any] = {
        "connect_args": {**_NETWORK, **({"password": password} if password else {})},
        "pool_pre_ping": True,  # between two reports a connection may have ended, of age
        "isolation_level": "REPEATABLE READ",  # who reads in several statements sees whole events
        "execution_options": {"postgresql_readonly": read_only},
    }
    try:
        return RDBStorage(url.replace(_SERVER, "postgresql+psycopg:", 1), engine_kwargs=options)
    except ImportError as error:
        raise ConfigError(f"study_url: PostgreSQL needs psycopg: pip install 'psycopg[binary]' ({error})") from error
    except RuntimeError as error:  # tables of another version of Optuna
        raise ConfigError(f"study_url={url}: {error}") from error


def _utc(time: datetime | None) -> datetime | None:
    """Optuna 5 stores times without a zone, as UTC."""
    return time and time.astimezone(UTC).replace(tzinfo=None)
