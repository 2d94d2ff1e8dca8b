"""Samplers and pruners: ours in anybody's Optuna study, anybody's in a search."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import optuna
import pytest
from curves import SPACE, controller, run_all, story
from decisions import played, reported
from optuna.trial import TrialState

from hpo.cli.commands import main
from hpo.policy import samplers
from hpo.policy.report_decision import decide_pruning, replay_decisions
from hpo.policy.search_config import SearchConfig
from hpo.policy.suggestions import check_plugins, suggest
from hpo.policy.surrogate_sampler import SurrogateSampler
from hpo.policy.trial_attributes import DECISION, KEPT
from hpo.store.record import Record
from model.common.errors import ConfigError

SEARCH = SearchConfig(trials=16, epochs=4, set={"width": 4})
THEIRS = """
import optuna

def sampler(seed):
    return optuna.samplers.{sampler}

def pruner():
    return optuna.pruners.{pruner}
"""


def theirs(folder, sampler="TPESampler(seed=seed, n_startup_trials=4)", pruner="MedianPruner(n_startup_trials=2)"):
    path = folder / f"{abs(hash((sampler, pruner)))}.py"
    path.write_text(THEIRS.format(sampler=sampler, pruner=pruner))
    return SearchConfig(**{**SEARCH.as_dict(), "sampler": str(path), "pruner": str(path)})


def branin(trial: optuna.Trial) -> float:
    x, y = trial.suggest_float("x", -5, 10), trial.suggest_float("y", 0, 15)
    kind = trial.suggest_categorical("kind", ["plain", "scaled"])
    scale = trial.suggest_float("scale", 1, 2) if kind == "scaled" else 1.0
    return scale * ((y - 0.129 * x**2 + 1.592 * x - 6) ** 2 + 9.602 * math.cos(x) + 10)


def test_our_sampler_beats_random_in_a_plain_study_of_a_conditional_space_to_be_minimised():
    def best(sampler: optuna.samplers.BaseSampler) -> float:
        study = optuna.create_study(sampler=sampler)
        study.optimize(branin, n_trials=40)
        return study.best_value

    ours = sorted(best(SurrogateSampler(seed=seed)) for seed in range(5))
    random = sorted(best(optuna.samplers.RandomSampler(seed=seed)) for seed in range(5))
    assert ours[2] < random[2]


def test_our_sampler_suggests_by_the_study_and_its_seed_alone():
    def suggested(seed: int) -> list[dict[str, object]]:
        study = optuna.create_study(sampler=SurrogateSampler(seed=seed))
        study.optimize(branin, n_trials=12)
        study.sampler = SurrogateSampler(seed=seed)  # as after a restart
        study.optimize(branin, n_trials=2)
        return [trial.params for trial in study.trials]

    assert suggested(0) == suggested(0) != suggested(1)


def test_our_sampler_refuses_several_objectives():
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=SurrogateSampler())
    with pytest.raises(ValueError, match="multi-objective"):
        study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 0.0), n_trials=1)


def test_a_search_by_a_users_sampler_and_pruner_suggests_and_prunes_what_they_do_in_plain_optuna(tmp_path):
    search = theirs(tmp_path)
    trials = played(10, search=search)
    seed = int.from_bytes(hashlib.sha256(b"0 10 0").digest()[:4], "little")  # of trial 10 of search 0
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=4))
    study.add_trials(trials)
    asked = study.ask()
    SPACE.suggest(asked, search.base_config())
    found = suggest(trials, SPACE, search)
    assert (found.params, found.by) == (asked.params, search.sampler)
    values = [(0, 0.5), (0, 0.6), (0, 0.7), (0, 0.8), (1, 0.5), (1, 0.6), (1, 0.7), (1, 0.8), (2, 0.6), (3, 0.4)]
    told = reported(values)
    for trial in told[:2]:
        trial.state, trial.values, trial.datetime_complete = TrialState.COMPLETE, [0.8], datetime.now()
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=2))
    study.add_trials(told)
    pruned = [study.pruner.prune(study, study.trials[number]) for number in (2, 3)]
    assert pruned == [False, True]
    assert [decide_pruning(told, number, 1, search).action for number in (2, 3)] == ["continue", "prune"]
    assert decide_pruning(told, 3, 1, search).reason == "pruner"


def test_a_search_by_a_users_objects_that_was_continued_is_the_undisturbed_one(tmp_path):
    search = theirs(tmp_path, pruner="SuccessiveHalvingPruner(reduction_factor=2)")
    undisturbed = Record.create(tmp_path / "a", "first", search)
    run_all(controller(undisturbed))
    first = Record.create(tmp_path / "b", "first", replace(search, trials=7))
    run_all(controller(first))
    again = Record(tmp_path / "b", "first")
    again.update_config({"trials": 16})
    run_all(controller(again))
    assert story(again.trials()) == story(undisturbed.trials())
    assert {trial.state.name for trial in again.trials()} == {"COMPLETE", "PRUNED"}
    for trial in again.trials():  # and every decision can be taken again
        *passed, last = replay_decisions(again.trials(), trial.number, again.search)
        assert {decision.action for decision in passed} <= {"continue"}
        assert asdict(last) == trial.user_attrs[DECISION]


def test_what_a_sampler_keeps_with_the_trials_is_there_for_its_next_suggestion(tmp_path):
    class Counting(optuna.samplers.RandomSampler):
        def before_trial(self, study, trial):
            kept = [other.system_attrs["count"] for other in study.get_trials(deepcopy=False)[:-1]]
            study._storage.set_trial_system_attr(trial._trial_id, "count", max(kept, default=0) + 1)

    record = Record.create(tmp_path, "first", SEARCH)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(samplers, "create_sampler", lambda search, seed: Counting(seed=seed))
        run_all(controller(record))
    kept = [trial.user_attrs[KEPT] for trial in Record(tmp_path, "first").trials()]
    assert kept == [{"count": number} for number in range(1, 17)]


def test_a_sampler_that_counts_in_the_study_is_refused(tmp_path):
    search = theirs(tmp_path, sampler="QMCSampler(seed=seed, warn_independent_sampling=False)")
    with pytest.raises(ConfigError, match="it keeps something in the study itself"):
        suggest(played(4), SPACE, search)
    with pytest.raises(ConfigError, match="it keeps something in the study itself"):  # before anything is started
        check_plugins(search)


def test_a_sampler_that_needs_what_is_not_installed_is_refused_before_anything_is_started(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(ConfigError, match=r"sampler=.*cmaes"):
        check_plugins(theirs(tmp_path, sampler="CmaEsSampler(seed=seed)"))


def test_a_users_file_may_move_but_not_change(tmp_path):
    search = theirs(tmp_path)
    record = Record.create(tmp_path, "first", search)
    moved = tmp_path / "moved.py"
    Path(search.pruner).rename(moved)
    record.update_config({"pruner": str(moved), "sampler": str(moved)})
    assert Record(tmp_path, "first").search.pruner == str(moved)
    moved.write_text(moved.read_text() + "# edited")
    with pytest.raises(ConfigError, match=r"pruner: .*moved\.py is not the file that it began with"):
        record.update_config({})
    with pytest.raises(ConfigError, match=r"sampler: it has .*, not tpe"):
        record.update_config({"sampler": "tpe"})


def test_a_value_that_is_not_finite_does_not_blind_our_sampler():
    def suggested(bad: float) -> dict[str, object]:
        study = optuna.create_study(sampler=SurrogateSampler(seed=0, random_share=0.0))
        study.optimize(branin, n_trials=12)
        trial = study.ask()
        branin(trial)
        trial.report(bad, 1)
        study.tell(trial, state=TrialState.PRUNED)
        following = study.ask()
        branin(following)
        return following.params

    assert suggested(math.nan) == suggested(math.inf)
    assert suggested(math.nan) != suggested(1e6)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file must define sampler(seed), which returns an optuna BaseSampler"),
        ("sampler = 3", "the file must define sampler(seed)"),
        ("def sampler(seed): return 3", "sampler(seed) returns int, not an optuna BaseSampler"),
        ("def sampler(): return 3", "sampler(seed): TypeError"),
        ("import nothing_like_it", "ModuleNotFoundError"),
        (None, "file not found"),
    ],
)
def test_what_is_wrong_with_a_users_file_is_told_with_its_path(text, told, tmp_path):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        check_plugins(replace(SEARCH, sampler=str(path)))
    assert str(caught.value).startswith(f"sampler={path}: ")
    assert told in str(caught.value)


def test_both_files_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        check_plugins(replace(SEARCH, sampler=str(tmp_path / "a.py"), pruner=str(tmp_path / "b.py")))
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        f"sampler={tmp_path / 'a.py'}",
        f"pruner={tmp_path / 'b.py'}",
    ]


def test_a_search_that_began_with_the_former_options_is_continued_by_its_own_rules(tmp_path):
    former = replace(SEARCH, trials=8, sampler="gp", pruner="leaders", grace_period=1, reduction_factor=4)
    undisturbed = Record.create(tmp_path / "a", "first", replace(former, trials=16))
    run_all(controller(undisturbed))
    begun = Record.create(tmp_path / "b", "first", former)
    run_all(controller(begun))
    path = tmp_path / "b" / "first" / "search.json"
    about = json.loads(path.read_text())
    del about["search"]["pruner"]
    about["search"] |= {"sampler": "surrogate", "scheduler": "leaders"}  # as it was written before 2026-12
    path.write_text(json.dumps(about))
    again = Record(tmp_path / "b", "first")
    assert (again.search.sampler, again.search.pruner) == ("gp", "leaders")
    again.update_config({"trials": 16})
    run_all(controller(again))
    assert story(again.trials()) == story(undisturbed.trials())
    assert {trial.user_attrs[DECISION]["reason"] for trial in again.trials()} >= {"leaders", "finished"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--scheduler leaders --sampler surrogate", {"pruner": "leaders", "sampler": "gp"}),
        ("--scheduler asha", {"pruner": "former-asha"}),
        ("--scheduler none --sampler tpe", {"pruner": "none", "sampler": "tpe"}),
        ("--pruner asha", {"pruner": "asha"}),
    ],
)
def test_the_former_options_are_still_understood(typed, meant, tmp_path, monkeypatch):
    asked: dict[str, object] = {}
    monkeypatch.setattr("hpo.run.search.run_search", lambda name, runs, options, **rest: asked.update(options) or 0)
    assert main(["search", "first", "--runs", str(tmp_path), *typed.split()]) == 0
    assert asked == meant
