"""The decisions of a search, against plain Optuna and against ASHA written down naively."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, replace

import numpy as np
import optuna
import pytest
from curves import SPACE, report
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo import decide
from hpo.config import SearchConfig
from hpo.decide import HEARD, REPORTS, judge, suggest
from hpo.surrogate import promising
from model.config import TrainConfig
from model.metrics import objective_value
from search_spaces import Space

SEARCH = SearchConfig(epochs=12, reduction=3, objective="ssim", set={"width": 4})


def finished(number: int, suggestion: decide.Suggestion, value: float) -> FrozenTrial:
    trial = create_trial(
        params=dict(suggestion.params),
        distributions=dict(suggestion.distributions),
        value=value,
        intermediate_values={1: value},
    )
    trial.number = number
    return trial


def played(count: int, space: Space = SPACE, search: SearchConfig = SEARCH) -> list[FrozenTrial]:
    """Trials that were suggested one after another; the nearer lr_g is to 1e-3, the better."""
    trials: list[FrozenTrial] = []
    while len(trials) < count and (suggestion := suggest(trials, space, search)) is not None:
        value = -abs(math.log10(suggestion.config.lr_g / 1e-3)) - suggestion.config.width / 100
        trials.append(finished(len(trials), suggestion, value))
    return trials


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


def test_after_six_trials_seven_in_ten_suggestions_are_the_surrogates():
    trials = played(26)
    found = [suggest(trials[:number], SPACE, SEARCH) for number in range(26)]
    assert [s.by for s in found[:6]] == ["starting point"] * 2 + ["random"] * 4
    assert {s.by for s in found[6:]} == {"surrogate", "random"}
    assert 10 <= sum(s.by == "surrogate" for s in found[6:]) <= 18
    number = next(number for number, s in enumerate(found) if s.by == "surrogate")
    assert number == 6
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(b"0 6 0").digest()[:4], "little"))
    rng.random()  # which decided that it is the surrogate's
    assert found[6].params == promising(trials[:6], SEARCH.epochs, rng)


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


def reported(order: list[tuple[int, float]]) -> list[FrozenTrial]:
    """Trials with the reports (trial, SSIM) in the order in which they were heard."""
    trials = []
    for number in range(1 + max(number for number, _ in order)):
        heard = [(place, ssim) for place, (n, ssim) in enumerate(order) if n == number]
        reports = [(report(epoch, ssim), place) for epoch, (place, ssim) in enumerate(heard, start=1)]
        trial = create_trial(
            state=TrialState.RUNNING,
            intermediate_values={r.epoch: objective_value(r.ssim, r.psnr_db, "ssim") for r, _ in reports},
            user_attrs={REPORTS: [{**r.as_dict(), HEARD: place} for r, place in reports]},
        )
        trial.number = number
        trials.append(trial)
    return trials


def test_the_first_after_grace_passes_however_bad_it_is_until_better_ones_have_come():
    decision = judge(reported([(0, -0.5), (1, 0.9)]), 0, 1, SEARCH)
    assert (decision.action, decision.reason, decision.rivals) == ("go on", "passed", 1)
    decision = judge(reported([(0, -0.5), (1, 0.9), (0, 1.0)]), 0, 2, SEARCH)
    assert asdict(decision).items() >= {"action": "prune", "value": 1.0, "cutoff": 0.9, "compared": 1}.items()


def test_a_decision_names_the_bar_who_set_it_and_what_was_compared():
    # Six have come: the best two pass, and the second best sets the bar.
    trials = reported([(0, 0.1), (1, 0.5), (2, 0.7), (3, 0.2), (4, 0.6), (5, 0.55)])
    assert asdict(judge(trials, 5, 1, SEARCH)) == {
        "action": "prune",
        "reason": "leaders",
        "epoch": 1,
        "value": 0.55,
        "cutoff": 0.6,
        "set_by": 4,
        "rivals": 6,
        "compared": 1,
    }
    assert judge(trials, 4, 1, SEARCH).cutoff == 0.7  # the sixth had not come yet: the best of five passes


def test_once_five_have_finished_who_is_worse_than_each_of_the_best_five_was_is_stopped():
    search = replace(SEARCH, epochs=3)
    # 0.3 is where the slowest starter of the best five began, and 0.1 where the sixth did: trial 0, the last to end.
    starts, ends = [0.1, 0.3, 0.6, 0.5, 0.4, 0.7], [0.80, 0.95, 0.94, 0.93, 0.92, 0.91]
    order = [(n, v) for n in (1, 2, 3, 4, 5, 0) for v in (starts[n], 0.8 - starts[n] / 10, ends[n])]
    trials = reported([*order, *((n, 0.9) for n in range(6, 20)), (20, 0.3), (21, 0.29), (20, 0.729)])
    for trial in trials[:6]:
        trial.state, trial.values = TrialState.COMPLETE, [trial.intermediate_values[3]]
    expected = {"action": "go on", "cutoff": 0.3, "set_by": 1, "rivals": 5, "compared": 1}
    assert asdict(judge(trials, 20, 1, search)).items() >= expected.items()
    assert asdict(judge(trials, 21, 1, search)).items() >= {"action": "prune", "cutoff": 0.3}.items()
    assert asdict(judge(trials, 20, 2, search)).items() >= {"action": "prune", "set_by": 5, "compared": 2}.items()
    assert decide.finished_by(trials) == 14  # reports before the last one of the fifth that ended
    for trial in trials[:2]:
        trial.state, trial.values = TrialState.RUNNING, None
    assert judge(trials, 20, 1, search).cutoff == 0.9  # four are too few to go by
    assert decide.finished_by(trials) == math.inf


def test_equal_values_pass_together():
    assert judge(reported([(0, 0.5), (1, 0.5)]), 1, 1, SEARCH).action == "go on"


@given(st.data())
@settings(deadline=None)
def test_who_goes_on_is_told_by_the_reports_that_came_before(data):
    """Against the rules written down naively: lists that grow in the order of arrival."""
    search = SearchConfig(
        epochs=3, objective="ssim", grace=data.draw(st.integers(1, 2)), reduction=data.draw(st.integers(2, 4))
    )
    values = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5])  # few, so that some are equal
    order = data.draw(st.lists(st.tuples(st.integers(0, 9), values), min_size=1, max_size=40))
    order = [step for i, step in enumerate(order) if sum(n == step[0] for n, _ in order[:i]) < search.epochs]
    heard: dict[int, list[float]] = {}

    def full(trials: list[FrozenTrial]) -> list[FrozenTrial]:
        for trial in trials:
            if search.epochs in trial.intermediate_values:
                trial.state, trial.values = TrialState.COMPLETE, [trial.intermediate_values[search.epochs]]
        return trials

    everything = full(
        reported([*order, *((n, 0.35) for n in range(10) if sum(m == n for m, _ in order) < search.epochs)])
    )
    for place, (number, value) in enumerate(order, start=1):
        mine = heard.setdefault(number, [])
        best = sorted((-v[-1], n) for n, v in heard.items() if len(v) == search.epochs)[:5]
        mine.append(value)
        decision = judge(full(reported(order[:place])), number, len(mine), search)
        if len(mine) == search.epochs:
            assert (decision.action, decision.reason) == ("complete", "finished")
        elif len(mine) < search.grace:
            assert (decision.action, decision.reason) == ("go on", "between rungs")
        elif len(best) == 5:
            assert decision.action == ("prune" if all(value < heard[n][len(mine) - 1] for _, n in best) else "go on")
        else:
            rung = [v[search.grace - 1] for v in heard.values() if len(v) >= search.grace]
            better = sum(other > mine[search.grace - 1] for other in rung)
            assert decision.action == ("go on" if better < max(1, len(rung) // search.reduction) else "prune")
            assert decision.rivals == len(rung)
        # What is heard later changes nothing, so that a decision that was lost is taken again as it was.
        assert judge(everything, number, len(mine), search) == decision


@given(st.data())
@settings(deadline=None)
def test_rungs_let_the_best_of_those_before_them_pass(data):
    """Against ASHA's stopping variant written down naively: lists that grow in the order of arrival."""
    search = SearchConfig(
        epochs=9,
        objective="ssim",
        scheduler="asha",
        grace=data.draw(st.integers(1, 3)),
        reduction=data.draw(st.integers(2, 4)),
    )
    values = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5])  # few, so that some are equal
    order = data.draw(st.lists(st.tuples(st.integers(0, 7), values), min_size=1, max_size=50))
    order = [step for i, step in enumerate(order) if sum(n == step[0] for n, _ in order[:i]) < search.epochs]
    rungs = [search.grace * search.reduction**i for i in range(9)]
    arrived: dict[int, list[float]] = {}
    everything = reported([*order, *((n, 0.35) for n in range(8) if sum(m == n for m, _ in order) < search.epochs)])
    for place, (number, value) in enumerate(order, start=1):
        epoch = sum(n == number for n, _ in order[:place])
        decision = judge(reported(order[:place]), number, epoch, search)
        if epoch == search.epochs:
            assert (decision.action, decision.reason) == ("complete", "finished")
        elif epoch not in rungs:
            assert (decision.action, decision.reason) == ("go on", "between rungs")
        else:
            rung = arrived.setdefault(epoch, [])
            rung.append(value)
            better = sum(other > value for other in rung)
            passes = better < max(1, len(rung) // search.reduction)
            assert decision.action == ("go on" if passes else "prune")
            assert decision.rivals == len(rung)
        # What is heard later changes nothing, so that a decision that was lost is taken again as it was.
        assert judge(everything, number, epoch, search) == decision


def test_without_a_scheduler_nothing_is_pruned():
    search = SearchConfig(epochs=12, objective="ssim", scheduler="none")
    assert decide.rungs(search) == ()
    trials = reported([(0, 0.9), (1, 0.1)])
    assert judge(trials, 1, 1, search).reason == "between rungs"


@pytest.mark.parametrize(
    ("asked", "rungs"),
    [
        ({}, (1,)),
        ({"grace": 2}, (2,)),
        ({"grace": 12}, ()),
        ({"scheduler": "asha"}, (1, 4)),
        ({"scheduler": "asha", "epochs": 9, "reduction": 3}, (1, 3)),
        ({"scheduler": "asha", "grace": 2, "reduction": 2}, (2, 4, 8)),
        ({"scheduler": "asha", "epochs": 1}, ()),
    ],
)
def test_rungs_are_grace_and_for_asha_reduction_times_as_far_each_below_the_last_epoch(asked, rungs):
    assert decide.rungs(SearchConfig(**asked)) == rungs


@pytest.mark.parametrize("epoch", [1, 2, 12])
def test_a_trial_that_diverged_is_pruned_with_a_finite_floor(epoch):
    trials = reported([(0, 0.8)] * (epoch - 1) + [(0, math.nan)])
    decision = judge(trials, 0, epoch, SEARCH)
    assert (decision.action, decision.reason, decision.value) == ("prune", "diverged", -1.0)


def test_a_trial_that_collapsed_is_pruned_before_its_rung():
    trials = reported([(0, 0.8), (0, 0.8)])
    for entry in trials[0].user_attrs[REPORTS]:
        entry.update(images=40_000, output_std=0.0)
    assert judge(trials, 0, 2, SEARCH).reason == "collapsed"
