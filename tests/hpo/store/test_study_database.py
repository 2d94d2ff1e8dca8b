"""The tables of Optuna that hpo/store/study_database.py writes itself; those of another version fail here first."""

from __future__ import annotations

from optuna.storages._rdb import models

TABLES = {
    "studies": {"study_id", "study_name"},
    "trials": {"trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"},
    "trial_params": {"param_id", "trial_id", "param_name", "param_value", "distribution_json"},
    "trial_user_attributes": {"trial_user_attribute_id", "trial_id", "key", "value_json"},
    "trial_intermediate_values": {
        "trial_intermediate_value_id",
        "trial_id",
        "step",
        "intermediate_value",
        "intermediate_value_type",
    },
    "trial_values": {"trial_value_id", "trial_id", "objective", "value", "value_type"},
}


def test_optunas_tables_are_those_that_are_written():
    tables = models.BaseModel.metadata.tables
    assert {name: {column.name for column in tables[name].columns} for name in TABLES} == TABLES, (
        "this version of Optuna has other tables than hpo/store/study_database.py writes"
    )
    assert models.SCHEMA_VERSION == 12, "read Optuna's migrations since schema 12, then adapt study_database.py"
