"""A search that an earlier version began and that was killed: it opens, shows its decisions, and continues."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hpo.cli.commands import main
from hpo.policy.trial_attributes import REPORTS
from hpo.store.record import Record

# Made by the version before options were renamed: `--grace`, `--reduction`, `--keep`, `--time-budget`, `--concurrent`.
# Killed while trial 5 was in its second epoch. Without pictures, which nothing reads.
FORMER = Path(__file__).parents[1] / "data/searches_before_2026_12"


@pytest.fixture
def former(runs: Path) -> Path:
    shutil.copytree(FORMER, runs)
    return runs


def test_its_options_have_their_present_names(former):
    search = Record(former, "former").search
    assert (search.grace_period, search.reduction_factor, search.keep_checkpoints) == (1, 3, 3)
    assert (search.time_budget_minutes, search.on_demand_after_minutes, search.max_concurrent) == (100.0, 10.0, 1)


def test_each_recorded_decision_is_taken_again(former, capsys):
    assert main(["show", "former", "--decisions", "--json", "--runs", str(former)]) == 0
    trials = json.loads(capsys.readouterr().out)["trials"]
    assert [trial["recorded"] is None for trial in trials] == [False] * 5 + [True]
    assert all(trial["agrees"] for trial in trials)


@pytest.mark.usefixtures("plainly")
def test_it_continues_from_the_last_checkpoint_and_changes_nothing_that_was_recorded(former):
    before = Record(former, "former").trials()
    assert main(["search", "former", "--runs", str(former)]) == 0
    record = Record(former, "former")
    after = record.trials()
    assert len(after) == 8
    assert all(trial.state.is_finished() for trial in after)
    for was, is_now in zip(before, after, strict=False):
        assert (was.params, was.number) == (is_now.params, is_now.number)
        assert is_now.user_attrs[REPORTS][: len(was.user_attrs[REPORTS])] == was.user_attrs[REPORTS]
        assert was.state == is_now.state or was.number == 5
    about = json.loads((former / "former/search.json").read_text())
    assert about["id"] == json.loads((FORMER / "former/search.json").read_text())["id"]


def test_options_by_their_former_names_are_no_change(former, capsys):
    command = "search former --grace 1 --reduction 3 --keep 3 --seed 4"
    assert main([*command.split(), "--runs", str(former)]) == 2
    err = capsys.readouterr().err
    assert "hpo: --grace is called --grace-period now" in err
    assert "seed: it has 3, not 4" in err
    assert "grace" not in err.partition("seed:")[2]
