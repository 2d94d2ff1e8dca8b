"""Whole searches with several objectives and limits, without Ray: on synthetic curves, and killed at every write."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from curves import controller, story
from fronts import SEARCH, SPACE, figures, learned, run
from optuna.trial import TrialState

from hpo.policy import leaderboard, suggestions
from hpo.policy.trial_attributes import CONFIG, DECISION, REPORTS
from hpo.policy.trial_objectives import objective_values
from hpo.store.record import Record
from hpo.store.search_file import DamagedError
from search_spaces import Space


@pytest.fixture
def searched(runs: Path) -> Record:
    record = Record.create(runs, "front", SEARCH)
    run(record)
    return Record(runs, "front")


def reasons(record: Record) -> set[str]:
    return {trial.user_attrs[DECISION]["reason"] for trial in record.trials()}


def test_the_search_ends_with_a_front_and_has_pruned_others(searched):
    assert reasons(searched) == {"finished", "dominated"}
    front = leaderboard.front(searched.trials(), SEARCH)
    values = [objective_values(searched.trial(number), SEARCH) for number in front]
    assert len(front) >= 3
    assert [v["psnr"] for v in values] == sorted((v["psnr"] for v in values), reverse=True)
    assert [v["latency"] for v in values] == sorted((v["latency"] for v in values), reverse=True)
    assert leaderboard.finalists(searched.trials(), SEARCH) == front
    assert set(front) <= leaderboard.kept_trials(searched.trials(), replace(SEARCH, keep_checkpoints=3))


def test_the_winner_is_the_best_of_the_first_trained_objective_however_the_names_are_ordered(runs):
    record = Record.create(runs, "latency-first", replace(SEARCH, objectives=("latency", "psnr")))
    run(record)
    record = Record(runs, "latency-first")
    front = leaderboard.front(record.trials(), record.search)
    assert front[0] == max(front, key=lambda number: objective_values(record.trial(number), record.search)["psnr"])


def test_an_architecture_is_measured_once(runs):
    record = Record.create(runs, "front", SEARCH)
    measured = run(record)
    trials = Record(runs, "front").trials()
    assert sorted(trials[n].params["width"] for n in measured) == sorted({trial.params["width"] for trial in trials})


def test_a_search_whose_driver_dies_after_every_epoch_is_the_undisturbed_one(searched, runs):
    record = Record.create(runs, "killed", replace(SEARCH))
    run(record, steps_per_driver=1)
    assert story(Record(runs, "killed").trials()) == story(searched.trials())


def test_optuna_itself_reads_front_directions_and_values(searched):
    study = optuna.load_study(study_name="front", storage=f"sqlite:///{searched.study_file}")
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    front = leaderboard.front(searched.trials(), SEARCH)
    for trial in study.trials:
        assert trial.values == list(objective_values(searched.trial(trial.number), SEARCH).values())
    complete = {trial.number for trial in study.trials if trial.state == TrialState.COMPLETE}
    assert {trial.number for trial in study.best_trials} >= set(front) & complete


def test_a_trial_beyond_a_limit_is_never_trained_and_optuna_sees_the_constraint(runs):
    search = replace(SEARCH, limit=("params<=1000", "psnr>=20"), trials=16)
    run(Record.create(runs, "front", search))
    record = Record(runs, "front")
    study = optuna.load_study(study_name="front", storage=f"sqlite:///{record.study_file}")
    for trial, mine in zip(study.trials, record.trials(), strict=True):
        is_wide = 100 * trial.params["width"] ** 2 > 1000
        assert (leaderboard.outcome_of(mine) == "infeasible") is is_wide
        assert trial.constraints["params<=1000"] == 100 * trial.params["width"] ** 2 - 1000
        if is_wide:
            assert trial.values is None
            assert mine.user_attrs[REPORTS] == []
        else:
            psnr_db = objective_values(mine, search)["psnr"]
            assert trial.constraints["psnr>=20"] == pytest.approx(20 - psnr_db)
            assert leaderboard.is_candidate(mine) is (psnr_db >= 20)
    assert {"infeasible", "finished"} <= {leaderboard.outcome_of(trial) for trial in record.trials()}


def test_a_limit_works_with_one_objective_too(runs):
    run(Record.create(runs, "one", replace(SEARCH, objectives=("psnr",), limit=("latency<=3",), trials=12)))
    record = Record(runs, "one")
    assert all(trial.params["width"] <= 6 for trial in record.trials() if leaderboard.is_candidate(trial))
    assert {"infeasible"} < {leaderboard.outcome_of(trial) for trial in record.trials()}


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
def test_every_sampler_suggests_with_several_objectives(searched, sampler):
    search = replace(SEARCH, sampler=sampler)
    first = suggestions.suggest(searched.trials(), SPACE, search)
    assert first is not None
    assert first == suggestions.suggest(searched.trials(), SPACE, search)


def test_an_objective_that_is_the_same_for_all_changes_no_suggestion(runs):
    """With one architecture the latency is constant, and the search is that of the other objective."""
    fixed = Space(
        name="rates",
        suggest=lambda trial, base: replace(base, width=4, lr_g=trial.suggest_float("lr_g", 1e-4, 1e-2, log=True)),
        starting_points=(),
    )
    rates = {}
    for objectives in (("psnr",), ("psnr", "latency")):
        search = replace(SEARCH, objectives=objectives, pruner="none", trials=16)
        driver = controller(Record.create(runs, "-".join(objectives), search), space=fixed)
        while (trial := driver.next_trial()) is not None:
            config = trial.user_attrs[CONFIG]
            driver.on_start(trial.number, figures(config))
            driver.on_report(trial.number, [learned(config, epoch) for epoch in range(1, SEARCH.epochs + 1)])
        rates[objectives] = [trial.params["lr_g"] for trial in driver.record.trials()]
    assert rates[("psnr",)] == rates[("psnr", "latency")]


def test_figures_that_are_damaged_are_reported(searched):
    with closing(sqlite3.connect(searched.study_file)) as database, database:
        database.execute("UPDATE trial_user_attributes SET value_json = '{\"latency\": \"fast\"}' WHERE key = 'known'")
    with pytest.raises(DamagedError, match="trial 0: its known"):
        Record(searched.folder.parent, "front")
