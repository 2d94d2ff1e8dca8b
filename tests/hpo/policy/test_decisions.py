"""The decisions of a search, against plain Optuna and against ASHA written down naively."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, replace

import optuna
import pytest
from curves import SPACE
from decisions import SEARCH, finished, played, reported
from optuna.trial import TrialState

from hpo.policy.report_decision import decide_pruning
from hpo.policy.search_config import SearchConfig
from hpo.policy.suggestions import suggest
from hpo.policy.trial_attributes import REPORTS
from model.config import TrainConfig
from search_spaces import Space

# --- suggest --------------------------------------------------------------------------------------------------------


def test_a_suggestion_depends_on_the_trials_and_the_seed_alone():
    trials = played(15)
    first, again = suggest(trials, SPACE, SEARCH), suggest(trials, SPACE, SEARCH)
    other_seed = suggest(trials, SPACE, SearchConfig(**{**SEARCH.as_dict(), "seed": 1}))
    other_trials = suggest([*trials[:-1], finished(14, first, 0.0)], SPACE, SEARCH)
    assert first == again
    assert len({str(s.params) for s in (first, other_seed, other_trials)}) == 3


def test_starting_points_come_first():
    trials = played(4)
    assert [trial.params for trial in trials[:2]] == [dict(point) for point in SPACE.starting_points]
    assert trials[2].params not in SPACE.starting_points


def test_what_a_starting_point_leaves_out_is_suggested():
    space = replace(SPACE, starting_points=({"loss": "ssim", "lr_g": 3e-3},))
    first = suggest([], space, SEARCH)
    assert first
    assert first.by == "starting point"
    assert first.params.items() >= space.starting_points[0].items()
    assert first.params.keys() == {"loss", "ssim_weight", "lr_g", "lr_d"}
    assert first.params == suggest([], space, SEARCH).params


def test_after_six_trials_seven_in_ten_suggestions_are_the_samplers():
    trials = played(26)
    found = [suggest(trials[:number], SPACE, SEARCH) for number in range(26)]
    assert [s.by for s in found[:6]] == ["starting point"] * 2 + ["random"] * 4
    assert {s.by for s in found[6:]} == {"gp", "random"}
    assert 10 <= sum(s.by == "gp" for s in found[6:]) <= 18


def test_a_suggestion_is_what_plain_optuna_suggests():
    trials = played(15)  # more than the 10 that are drawn at random
    for under_way in trials[-4:]:  # they keep others away
        under_way.state, under_way.values, under_way.datetime_complete = TrialState.RUNNING, None, None
    # The seed of trial 15 of search 0: it must not change, or a continued search would go elsewhere.
    seed = int.from_bytes(hashlib.sha256(b"0 15 0").digest()[:4], "little")
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(trials)
    asked = study.ask()
    config = SPACE.suggest(asked, SEARCH.base_config())
    mine = suggest(trials, SPACE, replace(SEARCH, sampler="tpe"))
    assert (mine.params, mine.distributions, mine.config) == (asked.params, asked.distributions, config)


def test_a_finite_space_is_searched_to_its_end_without_repeating_itself():
    def choose(trial: optuna.trial.Trial, base: TrainConfig) -> TrainConfig:
        return TrainConfig(width=trial.suggest_int("width", 1, 20), patch=trial.suggest_categorical("patch", [14, 34]))

    space = Space(name="finite", suggest=choose, starting_points=({"width": 3, "patch": 14},) * 2)
    trials = played(1000, space)
    assert len({str(trial.params) for trial in trials}) == len(trials) == 40
    assert suggest(trials, space, SEARCH) is None


# --- judge ----------------------------------------------------------------------------------------------------------


def test_a_decision_names_the_bar_who_set_it_and_what_was_compared():
    # Eight have come: two places, and the second best sets the bar.
    trials = reported([(0, 0.1), (1, 0.5), (2, 0.7), (3, 0.2), (4, 0.6), (5, 0.3), (6, 0.4), (7, 0.55)])
    search = replace(SEARCH, reduction_factor=4)
    assert asdict(decide_pruning(trials, 7, 1, search)) == {
        "action": "prune",
        "reason": "asha",
        "epoch": 1,
        "value": 0.55,
        "cutoff": 0.6,
        "set_by": 4,
        "rivals": 8,
        "compared": 1,
        "places": 2,
        "kept": None,
    }
    assert decide_pruning(trials, 4, 1, search).cutoff == 0.7  # three had not come yet: one place


def test_equal_values_pass_together():
    assert decide_pruning(reported([(0, 0.5), (1, 0.5)]), 1, 1, SEARCH).action == "continue"


def test_without_a_pruner_nothing_is_pruned():
    search = SearchConfig(epochs=12, objectives=("ssim",), pruner="none")
    trials = reported([(0, 0.9), (1, 0.1)])
    assert decide_pruning(trials, 1, 1, search).reason == "not compared"


@pytest.mark.parametrize("epoch", [1, 2, 12])
def test_a_trial_that_diverged_is_pruned_with_a_finite_floor(epoch):
    trials = reported([(0, 0.8)] * (epoch - 1) + [(0, math.nan)])
    decision = decide_pruning(trials, 0, epoch, SEARCH)
    assert (decision.action, decision.reason, decision.value) == ("prune", "diverged", -1.0)


def test_a_trial_that_collapsed_is_pruned_before_its_rung():
    trials = reported([(0, 0.8), (0, 0.8)])
    for entry in trials[0].user_attrs[REPORTS]:
        entry.update(images=40_000, output_std=0.0)
    assert decide_pruning(trials, 0, 2, SEARCH).reason == "collapsed"
