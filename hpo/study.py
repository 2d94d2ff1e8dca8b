"""A search's trials in Optuna's own tables: one writer, one transaction an event. Optuna, and all its tools, read them.

Optuna's storage looks a trial up again for each parameter and attribute and commits each on its own: tens of
milliseconds an event (docs/log.md), in the loop that hands out trials, and a kill in between leaves half an event.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy import Connection, insert, update

optuna.logging.set_verbosity(optuna.logging.WARNING)

_LOCKED_SECONDS = 60  # SQLite's patience with another process; its default is 5
_TRIALS = models.TrialModel.__table__
_PARAMS = models.TrialParamModel.__table__
_ATTRS = models.TrialUserAttributeModel.__table__
_STEPS = models.TrialIntermediateValueModel.__table__
_VALUES = models.TrialValueModel.__table__


class Study:
    """One that exists; `create` makes one. Raises KeyError where it is not there, SQLAlchemy's DatabaseError."""

    def __init__(self, url: str, name: str) -> None:
        self._storage = _storage(url)
        self._id = self._storage.get_study_id_from_name(name)

    @staticmethod
    def create(url: str, name: str) -> None:
        """Or leave the one that is there. Objectives are to be maximised."""
        optuna.create_study(study_name=name, storage=_storage(url), direction="maximize", load_if_exists=True)

    def trials(self) -> list[FrozenTrial]:
        """As they are on disk, by number."""
        return self._storage.get_all_trials(self._id, deepcopy=False)

    def write(self, now: FrozenTrial, was: FrozenTrial | None) -> None:
        """What is new in a trial, all or nothing. was: the trial as it was written last; None: never, and it gets its
        id. Values of attributes are exchanged, not changed in place.
        """
        with self._storage.engine.begin() as connection:
            if was is None:
                now._trial_id = self._insert(connection, now)
            elif now.state != was.state:
                ended = {"state": now.state, "datetime_complete": _utc(now.datetime_complete)}
                connection.execute(update(_TRIALS).where(_TRIALS.c.trial_id == now._trial_id), ended)
            own = {"trial_id": now._trial_id}
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
        row: dict[str, Any] = {"study_id": self._id, "number": trial.number, "state": trial.state}
        result = connection.execute(insert(_TRIALS), {**row, "datetime_start": _utc(trial.datetime_start)})
        assert result.inserted_primary_key is not None
        trial_id = int(result.inserted_primary_key[0])
        for name, value in trial.params.items():
            of = trial.distributions[name]
            row = {"trial_id": trial_id, "param_name": name, "param_value": of.to_internal_repr(value)}
            connection.execute(insert(_PARAMS), {**row, "distribution_json": distribution_to_json(of)})
        return trial_id

    def note(self, key: str, value: Any) -> None:
        """A JSON-ready fact about the whole study."""
        self._storage.set_study_user_attr(self._id, key, value)

    def notes(self) -> dict[str, Any]:
        """All such facts."""
        return self._storage.get_study_user_attrs(self._id)


def _storage(url: str) -> RDBStorage:
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _LOCKED_SECONDS}})


def _utc(time: datetime | None) -> datetime | None:
    """Optuna 5 stores times without a zone, as UTC."""
    return time and time.astimezone(UTC).replace(tzinfo=None)
