"""Who goes on: the pruner's rules as properties over random histories, in Optuna's studies and in a search's own."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import optuna
import pytest
from decisions import reported
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from hpo.policy.leaderboard import candidates
from hpo.policy.pruners import AshaPruner, FormerPruner
from hpo.policy.report_decision import Decision, decide_pruning
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import DECISION, REPORTS

SEARCH = SearchConfig(epochs=12, reduction_factor=3, objectives=("ssim",))
VALUES = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5])  # few, so that some are equal


# A report of a history: whose, its value, and whether its images are further from the clean ones than the noisy input.
Step = tuple[int, float, bool]
STEPS = st.lists(st.tuples(st.integers(0, 9), VALUES, st.integers(0, 4).map(lambda n: n == 0)), min_size=1, max_size=50)


class Played:
    """A history played as the record plays it: each report is judged, and a trial that its decision ended is silent."""

    def __init__(self, order: list[Step], search: SearchConfig) -> None:
        self.search = search
        self.order: list[Step] = []
        self.decisions: list[Decision] = []
        self._ended: dict[int, Decision] = {}
        for step in order:
            if step[0] not in self._ended:
                self.order.append(step)
                decision = decide_pruning(self.trials(), step[0], self.epoch(step[0]), search)
                self.decisions.append(decision)
                if decision.action != "continue":
                    self._ended[step[0]] = decision

    def epoch(self, number: int) -> int:
        return sum(n == number for n, *_ in self.order)

    def trials(self) -> list[FrozenTrial]:
        trials = reported([(number, value) for number, value, _ in self.order])
        for trial in trials:
            is_below = [dead for number, _, dead in self.order if number == trial.number]
            for report, dead in zip(trial.user_attrs[REPORTS], is_below, strict=True):
                report["psnr_db"] = 8.7 if dead else 25.0
            if decision := self._ended.get(trial.number):
                trial.state = TrialState.COMPLETE if decision.action == "complete" else TrialState.PRUNED
                trial.values = [decision.value]
                trial.user_attrs[DECISION] = asdict(decision)
        return trials


def has_died(order: list[Step], number: int) -> bool:
    """Better than the noisy input once, and worse at present."""
    below = [dead for n, _, dead in order if n == number]
    return bool(below) and below[-1] and not all(below)


def rivals(order: list[Step], epoch: int) -> dict[int, float]:
    """Of all trials that reached the epoch and live, the value that they had there."""
    values: dict[int, list[float]] = {}
    for number, value, _ in order:
        values.setdefault(number, []).append(value)
    return {n: v[epoch - 1] for n, v in values.items() if len(v) >= epoch and not has_died(order, n)}


def wrongly_pruned(order: list[Step], search: SearchConfig) -> list[int]:
    """Places of a history at which a trial that lives is pruned although none that reached its epoch, and lives, was
    better."""
    played, found = Played(order, search), []
    for place, decision in enumerate(played.decisions):
        number, value, _ = played.order[place]
        so_far = played.order[: place + 1]
        if decision.action == "prune" and decision.reason != "collapsed" and not has_died(so_far, number):
            found += [place] * (value >= max(rivals(so_far, decision.epoch).values()))
    return found


def lived(*order: tuple[int, float]) -> list[Step]:
    return [(number, value, False) for number, value in order]


# What `make search` did: a trial that had died since set the bar of epoch 1, and the best trial was pruned by it.
LOST_BEST = [*lived((0, 0.4), (1, 0.5), (2, 0.1), (3, 0.1), (1, 0.5)), (1, 0.2, True), (1, 0.2, True), *lived((0, 0.5))]


@given(STEPS, st.integers(1, 2), st.integers(2, 5))
@example([*lived((0, 0.4), (1, 0.5)), (1, 0.1, True), *lived((2, 0.45), (0, 0.45))], 1, 5)
@example([*lived((0, 0.4), (1, 0.5), (0, 0.6)), (1, 0.1, True), *lived((2, 0.45))], 1, 5)
@settings(deadline=None)
def test_who_has_the_best_value_at_its_epoch_is_never_pruned(order, grace_period, reduction_factor):
    assert (
        wrongly_pruned(order, replace(SEARCH, epochs=4, grace_period=grace_period, reduction_factor=reduction_factor))
        == []
    )


def test_the_former_rule_pruned_the_best_by_what_a_dead_trial_once_was():
    assert wrongly_pruned(LOST_BEST, replace(SEARCH, pruner="leaders")) == [7]
    assert wrongly_pruned(LOST_BEST, SEARCH) == []


def test_a_trial_that_is_pruned_in_its_first_dead_epoch_has_collapsed_and_is_nobodys_rival():
    order = [*lived((0, 0.5), (1, 0.6), (0, 0.6)), (1, 0.2, True), *lived((2, 0.5))]
    played = Played(order, SEARCH)
    assert [(d.action, d.reason) for d in played.decisions[3:]] == [("prune", "collapsed"), ("continue", "passed")]
    assert candidates(played.trials()) == [0, 2]


@given(STEPS, st.integers(2, 5))
@settings(deadline=None)
def test_values_are_compared_at_the_same_epoch_and_the_dead_are_no_rivals(order, reduction_factor):
    played = Played(order, replace(SEARCH, epochs=4, reduction_factor=reduction_factor))
    for place, decision in enumerate(played.decisions):
        so_far = played.order[: place + 1]
        if decision.rivals is None or has_died(so_far, so_far[-1][0]):
            continue
        assert decision.compared == decision.epoch
        assert decision.rivals == len(rivals(so_far, decision.epoch))
        assert rivals(so_far, decision.epoch)[decision.set_by] == decision.cutoff


def test_evidence_counts_while_none_has_finished():
    decision = decide_pruning(reported([(n, n / 10) for n in (9, 8, 7, 6, 1)]), 1, 1, SEARCH)
    assert (decision.action, decision.cutoff, decision.set_by) == ("prune", 0.9, 9)


@given(STEPS, st.integers(1, 2), st.integers(2, 5))
@settings(deadline=None)
def test_what_is_heard_later_changes_no_decision(order, grace_period, reduction_factor):
    search = replace(SEARCH, epochs=4, grace_period=grace_period, reduction_factor=reduction_factor)
    played = Played(order, search)
    everything, epochs = played.trials(), [0] * 10
    for (number, *_), decision in zip(played.order, played.decisions, strict=True):
        epochs[number] += 1
        assert decide_pruning(everything, number, epochs[number], search) == decision


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_in_a_plain_optuna_study_most_bad_trials_are_pruned_and_the_best_never(direction):
    study = optuna.create_study(
        direction=direction, sampler=optuna.samplers.RandomSampler(seed=1), pruner=AshaPruner(reduction_factor=3)
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


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_what_is_not_a_number_is_worse_than_every_value(direction):
    study = optuna.create_study(direction=direction, pruner=AshaPruner(reduction_factor=2))
    first, second = study.ask(), study.ask()
    first.report(math.nan, 1)
    second.report(0.9, 1)
    assert (first.should_prune(), second.should_prune()) == (True, False)


def test_who_is_a_difference_that_nobody_sees_below_the_bar_goes_on():
    for value, expected in {0.4991: "continue", 0.4989: "prune"}.items():
        assert decide_pruning(reported([(0, 0.5), (1, value)]), 1, 1, SEARCH).action == expected


def test_who_has_an_eighth_of_its_epochs_left_is_let_finish():
    for epoch, expected in {10: "prune", 11: "continue"}.items():
        behind = reported([*((0, 0.5) for _ in range(11)), *((1, 0.5) for _ in range(epoch - 1)), (1, 0.4)])
        assert decide_pruning(behind, 1, epoch, SEARCH).action == expected


@pytest.mark.parametrize(("grace_period", "reduction_factor"), [(0, 4), (1, 0.5)])
def test_what_cannot_be_asked_of_the_pruner_is_refused(grace_period, reduction_factor):
    with pytest.raises(
        ValueError, match=f"grace_period={grace_period}, reduction_factor={reduction_factor}: both must be at least 1"
    ):
        AshaPruner(grace_period=grace_period, reduction_factor=reduction_factor)


# --- the rules that searches began with before ------------------------------------------------------------------------

FORMER = replace(SEARCH, pruner="leaders")


def test_the_first_after_grace_passes_however_bad_it_is_until_better_ones_have_come():
    decision = decide_pruning(reported([(0, -0.5), (1, 0.9)]), 0, 1, FORMER)
    assert (decision.action, decision.reason, decision.rivals) == ("continue", "passed", 1)
    decision = decide_pruning(reported([(0, -0.5), (1, 0.9), (0, 1.0)]), 0, 2, FORMER)
    assert asdict(decision).items() >= {"action": "prune", "value": 1.0, "cutoff": 0.9, "compared": 1}.items()


def test_a_decision_names_the_bar_who_set_it_and_what_was_compared():
    # Six have come: the best two pass, and the second best sets the bar.
    trials = reported([(0, 0.1), (1, 0.5), (2, 0.7), (3, 0.2), (4, 0.6), (5, 0.55)])
    assert asdict(decide_pruning(trials, 5, 1, FORMER)) == {
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
    assert decide_pruning(trials, 4, 1, FORMER).cutoff == 0.7  # the sixth had not come yet: the best of five passes


def test_once_five_have_finished_who_is_worse_than_each_of_the_best_five_was_is_stopped():
    search = replace(FORMER, epochs=3)
    # 0.3 is where the slowest starter of the best five began, and 0.1 where the sixth did: trial 0, the last to end.
    starts, ends = [0.1, 0.3, 0.6, 0.5, 0.4, 0.7], [0.80, 0.95, 0.94, 0.93, 0.92, 0.91]
    order = [(n, v) for n in (1, 2, 3, 4, 5, 0) for v in (starts[n], 0.8 - starts[n] / 10, ends[n])]
    trials = reported([*order, *((n, 0.9) for n in range(6, 20)), (20, 0.3), (21, 0.29), (20, 0.729)])
    for trial in trials[:6]:
        trial.state, trial.values = TrialState.COMPLETE, [trial.intermediate_values[3]]
    expected = {"action": "continue", "cutoff": 0.3, "set_by": 1, "rivals": 5, "compared": 1}
    assert asdict(decide_pruning(trials, 20, 1, search)).items() >= expected.items()
    assert asdict(decide_pruning(trials, 21, 1, search)).items() >= {"action": "prune", "cutoff": 0.3}.items()
    assert (
        asdict(decide_pruning(trials, 20, 2, search)).items() >= {"action": "prune", "set_by": 5, "compared": 2}.items()
    )
    for trial in trials[:2]:
        trial.state, trial.values = TrialState.RUNNING, None
    assert decide_pruning(trials, 20, 1, search).cutoff == 0.9  # four are too few to go by


@given(st.data())
@settings(deadline=None)
def test_who_goes_on_is_told_by_the_reports_that_came_before(data):
    """Against the rules written down naively: lists that grow in the order of arrival."""
    search = SearchConfig(
        epochs=3,
        pruner="leaders",
        objectives=("ssim",),
        grace_period=data.draw(st.integers(1, 2)),
        reduction_factor=data.draw(st.integers(2, 4)),
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
        decision = decide_pruning(full(reported(order[:place])), number, len(mine), search)
        if len(mine) == search.epochs:
            assert (decision.action, decision.reason) == ("complete", "finished")
        elif len(mine) < search.grace_period:
            assert (decision.action, decision.reason) == ("continue", "not compared")
        elif len(best) == 5:
            assert decision.action == ("prune" if all(value < heard[n][len(mine) - 1] for _, n in best) else "continue")
        else:
            rung = [v[search.grace_period - 1] for v in heard.values() if len(v) >= search.grace_period]
            better = sum(other > mine[search.grace_period - 1] for other in rung)
            assert decision.action == ("continue" if better < max(1, len(rung) // search.reduction_factor) else "prune")
            assert decision.rivals == len(rung)
        # What is heard later changes nothing, so that a decision that was lost is taken again as it was.
        assert decide_pruning(everything, number, len(mine), search) == decision


@given(st.data())
@settings(deadline=None)
def test_rungs_let_the_best_of_those_before_them_pass(data):
    """Against ASHA's stopping variant written down naively: lists that grow in the order of arrival."""
    search = SearchConfig(
        epochs=9,
        objectives=("ssim",),
        pruner="former-asha",
        grace_period=data.draw(st.integers(1, 3)),
        reduction_factor=data.draw(st.integers(2, 4)),
    )
    values = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5])  # few, so that some are equal
    order = data.draw(st.lists(st.tuples(st.integers(0, 7), values), min_size=1, max_size=50))
    order = [step for i, step in enumerate(order) if sum(n == step[0] for n, _ in order[:i]) < search.epochs]
    rungs = [search.grace_period * search.reduction_factor**i for i in range(9)]
    arrived: dict[int, list[float]] = {}
    everything = reported([*order, *((n, 0.35) for n in range(8) if sum(m == n for m, _ in order) < search.epochs)])
    for place, (number, value) in enumerate(order, start=1):
        epoch = sum(n == number for n, _ in order[:place])
        decision = decide_pruning(reported(order[:place]), number, epoch, search)
        if epoch == search.epochs:
            assert (decision.action, decision.reason) == ("complete", "finished")
        elif epoch not in rungs:
            assert (decision.action, decision.reason) == ("continue", "not compared")
        else:
            rung = arrived.setdefault(epoch, [])
            rung.append(value)
            better = sum(other > value for other in rung)
            passes = better < max(1, len(rung) // search.reduction_factor)
            assert decision.action == ("continue" if passes else "prune")
            assert decision.rivals == len(rung)
        # What is heard later changes nothing, so that a decision that was lost is taken again as it was.
        assert decide_pruning(everything, number, epoch, search) == decision


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
    grace_period, reduction_factor, epochs = asked
    pruner = FormerPruner("asha", grace_period=grace_period, reduction_factor=reduction_factor)
    assert tuple(epoch for epoch in range(epochs) if pruner.compares(epoch)) == rungs
