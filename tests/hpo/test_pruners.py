"""Who goes on: the pruner's rules as properties over random histories, in Optuna's studies and in a search's own."""

from __future__ import annotations

from dataclasses import asdict, replace

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState
from test_decide import reported

from hpo.config import SearchConfig
from hpo.decide import DECISION, judge
from hpo.pruners import AshaPruner, FormerPruner

SEARCH = SearchConfig(epochs=12, reduction=3, objective="ssim")
VALUES = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5])  # few, so that some are equal


@st.composite
def histories(draw: st.DrawFn, epochs: int, trials: int = 10) -> list[tuple[int, float]]:
    """(trial, value) in the order of arrival; dead trials are told apart by their value, 0."""
    order: list[tuple[int, float]] = []
    dead: set[int] = set()
    for _ in range(draw(st.integers(1, 50))):
        number = draw(st.integers(0, trials - 1))
        if number in dead or sum(n == number for n, _ in order) == epochs:
            continue
        value = draw(st.one_of(VALUES, st.just(0.0)))
        if value == 0.0:
            dead.add(number)
        order.append((number, value))
    return order


def searched(order: list[tuple[int, float]], search: SearchConfig) -> list[FrozenTrial]:
    """The trials of a history, ended where they are full or dead, the way the record ends them."""
    trials = reported(order)
    for trial in trials:
        last = max(trial.intermediate_values, default=0)
        is_dead = last > 0 and trial.intermediate_values[last] == 0.0
        if is_dead or last == search.epochs:
            trial.state = TrialState.PRUNED if is_dead else TrialState.COMPLETE
            trial.values = [trial.intermediate_values[last]]
            trial.user_attrs[DECISION] = {"reason": "collapsed" if is_dead else "finished"}
    return trials


def wrongly_pruned(order: list[tuple[int, float]], search: SearchConfig) -> list[int]:
    """Places of a history at which a trial is pruned although none that reached its epoch, and lives, was better."""
    found = []
    for place, (number, value) in enumerate(order):
        trials = searched(order[: place + 1], search)
        epoch = max(trials[number].intermediate_values)
        if value == 0.0 or judge(trials, number, epoch, search).action != "prune":
            continue
        alive = [t for t in trials if t.user_attrs.get(DECISION, {}).get("reason") != "collapsed"]
        if value >= max(t.intermediate_values[epoch] for t in alive if epoch in t.intermediate_values):
            found.append(place)
    return found


# What `make search` did: a trial that had died since set the bar of epoch 1, and the best trial was pruned by it.
LOST_BEST = [(0, 0.4), (1, 0.5), (2, 0.1), (3, 0.1), (1, 0.0), (0, 0.5), (0, 0.5), (0, 0.5)]


@given(histories(epochs=4), st.integers(1, 2), st.integers(2, 5))
@settings(deadline=None)
def test_who_has_the_best_value_at_its_epoch_is_never_pruned(order, grace, reduction):
    assert wrongly_pruned(order, replace(SEARCH, epochs=4, grace=grace, reduction=reduction)) == []


def test_the_former_rule_pruned_the_best_by_what_a_dead_trial_once_was():
    assert wrongly_pruned(LOST_BEST, replace(SEARCH, pruner="leaders")) == [5, 6, 7]
    assert wrongly_pruned(LOST_BEST, SEARCH) == []


@given(histories(epochs=4), st.integers(2, 5))
@settings(deadline=None)
def test_values_are_compared_at_the_same_epoch_and_the_dead_are_no_rivals(order, reduction):
    search = replace(SEARCH, epochs=4, reduction=reduction)
    number, value = order[-1]
    trials = searched(order, search)
    epoch = max(trials[number].intermediate_values)
    decision = judge(trials, number, epoch, search)
    if value == 0.0 or epoch == search.epochs:
        return
    assert decision.compared == epoch
    alive = [t for t in trials if t.user_attrs.get(DECISION, {}).get("reason") != "collapsed"]
    assert decision.rivals == sum(epoch in t.intermediate_values for t in alive)
    assert decision.set_by in {t.number for t in alive}
    # Without the dead, and without what others did after this epoch, it is the same.
    cut = [(n, v) for i, (n, v) in enumerate(order) if n in {t.number for t in alive} and (
        n == number or sum(m == n for m, _ in order[:i]) < epoch)]  # fmt: skip
    again = judge(searched(cut, search), number, epoch, search)
    assert (again.action, again.cutoff) == (decision.action, decision.cutoff)


def test_evidence_counts_while_none_has_finished():
    decision = judge(reported([(n, n / 10) for n in (9, 8, 7, 6, 1)]), 1, 1, SEARCH)
    assert (decision.action, decision.cutoff, decision.set_by) == ("prune", 0.9, 9)


@given(histories(epochs=4), st.integers(1, 2), st.integers(2, 5))
@settings(deadline=None)
def test_what_is_heard_later_changes_no_decision(order, grace, reduction):
    search = replace(SEARCH, epochs=4, grace=grace, reduction=reduction)
    everything = searched(order, search)
    for place, (number, value) in enumerate(order):
        trials = searched(order[: place + 1], search)
        epoch = max(trials[number].intermediate_values)
        if value > 0.0:
            assert judge(everything, number, epoch, search) == judge(trials, number, epoch, search)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_in_a_plain_optuna_study_most_bad_trials_are_pruned_and_the_best_never(direction):
    study = optuna.create_study(
        direction=direction, sampler=optuna.samplers.RandomSampler(seed=1), pruner=AshaPruner(reduction=3)
    )
    sign = 1 if direction == "maximize" else -1

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        for step in range(1, 10):
            trial.report(sign * x * step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return sign * x * 9

    study.optimize(objective, n_trials=40)
    assert study.best_trial.params["x"] == max(trial.params["x"] for trial in study.trials)
    assert sum(trial.state == TrialState.PRUNED for trial in study.trials) >= 25


def test_who_is_a_difference_that_nobody_sees_below_the_bar_goes_on():
    for value, expected in {0.4991: "go on", 0.4989: "prune"}.items():
        assert judge(reported([(0, 0.5), (1, value)]), 1, 1, SEARCH).action == expected


def test_who_has_an_eighth_of_its_epochs_left_is_let_finish():
    for epoch, expected in {10: "prune", 11: "go on"}.items():
        behind = reported([*((0, 0.5) for _ in range(11)), *((1, 0.5) for _ in range(epoch - 1)), (1, 0.4)])
        assert judge(behind, 1, epoch, SEARCH).action == expected


@pytest.mark.parametrize(("grace", "reduction"), [(0, 4), (1, 0.5)])
def test_what_cannot_be_asked_of_the_pruner_is_refused(grace, reduction):
    with pytest.raises(ValueError, match=f"grace={grace}, reduction={reduction}: both must be at least 1"):
        AshaPruner(grace=grace, reduction=reduction)


# --- the rules that searches began with before ------------------------------------------------------------------------

FORMER = replace(SEARCH, pruner="leaders")


def test_the_first_after_grace_passes_however_bad_it_is_until_better_ones_have_come():
    decision = judge(reported([(0, -0.5), (1, 0.9)]), 0, 1, FORMER)
    assert (decision.action, decision.reason, decision.rivals) == ("go on", "passed", 1)
    decision = judge(reported([(0, -0.5), (1, 0.9), (0, 1.0)]), 0, 2, FORMER)
    assert asdict(decision).items() >= {"action": "prune", "value": 1.0, "cutoff": 0.9, "compared": 1}.items()


def test_a_decision_names_the_bar_who_set_it_and_what_was_compared():
    # Six have come: the best two pass, and the second best sets the bar.
    trials = reported([(0, 0.1), (1, 0.5), (2, 0.7), (3, 0.2), (4, 0.6), (5, 0.55)])
    assert asdict(judge(trials, 5, 1, FORMER)) == {
        "action": "prune",
        "reason": "leaders",
        "epoch": 1,
        "value": 0.55,
        "cutoff": 0.6,
        "set_by": 4,
        "rivals": 6,
        "compared": 1,
        "places": 2,
        "kept": None,
    }
    assert judge(trials, 4, 1, FORMER).cutoff == 0.7  # the sixth had not come yet: the best of five passes


def test_once_five_have_finished_who_is_worse_than_each_of_the_best_five_was_is_stopped():
    search = replace(FORMER, epochs=3)
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
    for trial in trials[:2]:
        trial.state, trial.values = TrialState.RUNNING, None
    assert judge(trials, 20, 1, search).cutoff == 0.9  # four are too few to go by


@given(st.data())
@settings(deadline=None)
def test_who_goes_on_is_told_by_the_reports_that_came_before(data):
    """Against the rules written down naively: lists that grow in the order of arrival."""
    search = SearchConfig(
        epochs=3,
        pruner="leaders",
        objective="ssim",
        grace=data.draw(st.integers(1, 2)),
        reduction=data.draw(st.integers(2, 4)),
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
            assert (decision.action, decision.reason) == ("go on", "not compared")
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
        pruner="former-asha",
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
            assert (decision.action, decision.reason) == ("go on", "not compared")
        else:
            rung = arrived.setdefault(epoch, [])
            rung.append(value)
            better = sum(other > value for other in rung)
            passes = better < max(1, len(rung) // search.reduction)
            assert decision.action == ("go on" if passes else "prune")
            assert decision.rivals == len(rung)
        # What is heard later changes nothing, so that a decision that was lost is taken again as it was.
        assert judge(everything, number, epoch, search) == decision


@pytest.mark.parametrize(
    ("asked", "rungs"),
    [
        ((1, 4, 12), (1, 4)),
        ((1, 3, 9), (1, 3)),
        ((2, 2, 12), (2, 4, 8)),
        ((1, 4, 1), ()),
    ],
)
def test_rungs_are_grace_and_reduction_times_as_far_each_below_the_last_epoch(asked, rungs):
    grace, reduction, epochs = asked
    assert FormerPruner("asha", grace=grace, reduction=reduction).rungs(epochs) == rungs
