"""The simulator, against the real controller and record, and against what is known by theory."""

import gzip
import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import optuna
import pytest
import replay
from optuna.trial import TrialState
from replay import METHODS, main
from replay_report import interval, overview, summarize, summarize_budget
from replay_simulation import Ours, Outcome, simulate
from replay_table import TABLE, Table, record

from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import DECISION
from hpo.search_controller import SearchController
from hpo.store.record import Record
from search_spaces import load

SEARCH = SearchConfig(epochs=6, sampler="random", pruner="none", set={"width": 4})


@pytest.fixture(scope="module")
def content() -> bytes:
    """A table: 40 curves that depend on the generator's rate; the highest rates diverge in epoch 2."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    space, base, curves, distributions = load(SEARCH.space), SEARCH.base_config(), [], {}
    for _ in range(40):
        trial = study.ask()
        space.suggest(trial, base)
        distributions |= {
            name: json.loads(optuna.distributions.distribution_to_json(of)) for name, of in trial.distributions.items()
        }
        best = 0.8 - 0.1 * abs(math.log10(trial.params["lr_g"] / 5e-4))
        diverges = trial.params["lr_g"] > 2e-3
        curves.append(
            {
                "params": trial.params,
                "reason": "diverged" if diverges else "finished",
                "ssim": [best, "nan"] if diverges else [best - 0.3 / epoch for epoch in range(1, 7)],
                "psnr_db": [20.0, "nan"] if diverges else [20.0] * 6,
            }
        )
    about = {"search": SEARCH.as_dict(), "distributions": distributions}
    return gzip.compress(json.dumps({"about": about, "curves": curves}).encode())


def never_found(content: bytes) -> Table:
    """A search over it goes on to its budget."""
    table = Table(content)
    table.top = replace(table.top, threshold=math.inf)
    return table


@pytest.fixture(scope="module")
def real(content, tmp_path_factory) -> Record:
    """A search over the same curves by the controller, one trial at a time, with a record on disk."""
    table = Table(content)
    record = Record.create(tmp_path_factory.mktemp("runs"), "real", replace(table.search, trials=16, seed=3))
    controller = SearchController(record, table.space)
    while (trial := controller.next_trial()) is not None:
        reports, epoch = table.curve(trial.params).reports, 1
        while controller.on_report(trial.number, reports[:epoch]).action == "continue":
            epoch += 1
    return record


def test_one_worker_decides_as_the_conductor_does(content, real):
    table, trials = never_found(content), real.trials()
    assert {trial.user_attrs[DECISION]["reason"] for trial in trials} == {"finished", "asha", "diverged"}
    decider = Ours(table.space, real.search)
    simulate(decider, table, seed=0, workers=1, budget=sum(len(trial.intermediate_values) for trial in trials))
    assert len(decider.trials) == len(trials)
    for ours, theirs in zip(decider.trials, trials, strict=True):
        assert (ours.number, ours.state, ours.params) == (theirs.number, theirs.state, theirs.params)
        assert (ours.values, ours.intermediate_values) == (theirs.values, theirs.intermediate_values)
        assert ours.user_attrs == theirs.user_attrs


def test_a_record_becomes_a_table_always_of_the_same_bytes(real):
    content = record(real.folder.parent, real.name)
    assert content == record(real.folder.parent, real.name)
    table = Table(content)
    assert all(words in table.about["command"] for words in ("--trials 16", "--epochs 6"))
    for curve, trial in zip(table.curves, real.trials(), strict=True):
        assert curve.params == trial.params
        assert curve.values == pytest.approx(list(trial.intermediate_values.values()), abs=1e-5)
        assert curve.is_full == (trial.state == TrialState.COMPLETE)


def test_random_search_takes_as_long_as_theory_says(content):
    table = Table(content, share=0.3)
    space = replace(table.space, starting_points=())
    decider = partial(METHODS["random"], space)
    outcomes = [simulate(decider(replace(table.search, seed=s)), table, seed=s, workers=1) for s in range(60)]
    assert all(outcome.found for outcome in outcomes)
    _, low, high = interval(partial(np.mean, axis=-1), np.array([outcome.epochs for outcome in outcomes]))
    assert low < table.top.random_mean() < high


def test_a_configuration_learns_like_its_nearest_neighbour_with_the_same_loss(content):
    table = Table(content)
    recorded = table.curves[7]
    near = {**recorded.params, "lr_d": recorded.params["lr_d"] * 1.01}
    assert table.curve(near) is recorded
    for loss in ("l1", "ssim", "both"):
        weights = {"l1_weight": 100.0, "ssim_weight": 100.0}  # the one that takes no part changes nothing
        assert table.curve({**near, **weights, "loss": loss}).params["loss"] == loss


MINUTES = ("Syne Tune ASHACQR", "Syne Tune ASHABORE")  # their models, on all cores at once


def skip_if_missing(name: str) -> None:
    """Two peers' packages are not among those that a developer installs."""
    for package, module in {"Syne Tune": "syne_tune.optimizer.baselines", "NePS": "neps"}.items():
        if name.startswith(package):
            pytest.importorskip(module, exc_type=ImportError)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in MINUTES])
def test_a_method_repeats_itself_and_tries_the_starting_points_first(name, content):
    skip_if_missing(name)
    table, begun = never_found(content), []

    class Watched:
        def __init__(self) -> None:
            self.decider = METHODS[name](table.space, table.search)
            self.report = self.decider.report

        def next(self):
            job = self.decider.next()
            if job is not None:
                begun.append(job)
            return job

    first, second = (simulate(Watched(), table, seed=0, budget=60) for _ in range(2))
    assert replace(first, seconds=0) == replace(second, seconds=0)
    assert begun[: len(begun) // 2] == begun[len(begun) // 2 :]
    for point, (_, params) in zip(table.space.starting_points, begun[:2], strict=True):
        assert point.items() <= params.items()  # some methods know no conditional parameters
    assert first.epochs == 60


def test_one_epoch_resumes_the_best_three_of_thirty_and_then_begins_the_next_round(content):
    table, params = never_found(content), {}
    decider = METHODS["one epoch then best"](table.space, table.search)  # of a search without an end
    for _ in range(30):
        key, params[key] = decider.next()
    assert decider.next() is None
    first = {key: table.curve(params[key]).values[0] for key in params}
    for key, value in first.items():
        assert not decider.report(key, table.curve(params[key]).reports[0], value, False)
    resumed = [decider.next() for _ in range(3)]
    assert [first[key] for key, _ in resumed] == sorted(first.values(), reverse=True)[:3]
    assert all(again == params[key] for key, again in resumed)
    assert decider.next()[0] == 30


def test_ours_is_compared_with_a_method_seed_by_seed(content):
    def outcomes(epochs):
        return [Outcome(found=True, epochs=n, trials=1, virtual_time=1.0, seconds=1.0) for n in epochs]

    summary = summarize({"ours": outcomes([10, 20, 60]), "twice": outcomes([20, 40, 120])}, Table(content).top, 3_000)
    assert summary["twice"]["ours_to_it_mean"] == [0.5, 0.5, 0.5]
    assert summary["ours"]["median"][0] == 20


def test_a_comparison_is_continued_from_its_cache(content, tmp_path, capsys):
    (tmp_path / "table").write_bytes(content)
    words = ["compare", "--table", f"{tmp_path}/table", "--cache", f"{tmp_path}/cache", "--methods", "random"]
    main([*words, "--seeds", "2", "--budget", "60", "--json"])
    (cache,) = (tmp_path / "cache").iterdir()
    done = cache.read_text()
    main([*words, "--seeds", "3", "--budget", "60", "--json"])
    assert json.loads(cache.read_text()).items() > json.loads(done).items()
    assert "random" in capsys.readouterr().out


def test_the_table_of_the_repository_holds_enough_full_curves():
    table = Table(TABLE.read_bytes())
    assert sum(curve.is_full for curve in table.curves) >= 60
    assert 0.01 <= table.top.share < 0.05
    assert table.about["command"].startswith("hpo search ")


def written(*curves: list[float]) -> Table:
    """Of full curves with these values; a trial diverges whose last one is NaN."""
    study = optuna.create_study()
    trials = [study.ask() for _ in curves]
    for rate, trial in zip(np.linspace(1e-4, 1e-3, len(curves)), trials, strict=True):
        trial.suggest_float("lr_g", rate, rate)
    rows = [
        {
            "params": trial.params,
            "reason": "diverged" if math.isnan(values[-1]) else "finished",
            "ssim": ["nan" if math.isnan(value) else value for value in values],
            "psnr_db": [0.0] * len(values),
        }
        for trial, values in zip(trials, curves, strict=True)
    ]
    of = json.loads(optuna.distributions.distribution_to_json(optuna.distributions.FloatDistribution(1e-4, 1e-3)))
    about = {"search": SEARCH.as_dict(), "distributions": {"lr_g": of}}
    return Table(gzip.compress(json.dumps({"about": about, "curves": rows}).encode()))


class Scripted:
    """Tries the curves in their order. stops: the epoch after which a trial is stopped; resumed: and then goes on."""

    def __init__(self, table: Table, stops: dict[int, int] | None = None, resumed: tuple[int, ...] = ()) -> None:
        self.params = [curve.params for curve in table.curves]
        self.stops, self.resumed, self.begun = stops or {}, list(resumed), 0

    def next(self):
        self.begun += 1
        return self.begun - 1, self.params[self.begun - 1]

    def resume(self):
        if not self.resumed:
            return None
        key = self.resumed.pop()
        return key, self.params[key]

    def report(self, key, report, value, is_last):
        return report.epoch != self.stops.get(key)


@pytest.mark.parametrize(
    ("curves", "stops", "wrong"),
    [
        ([[0.1, 0.2, 0.3]], {0: 1}, 1),  # alone
        ([[0.1, 0.2, 0.3], [0.2, 0.3, 0.4]], {1: 2}, 1),  # better
        ([[0.1, 0.2, 0.3], [0.1, 0.2, 0.4]], {1: 2}, 1),  # as good
        ([[0.1, 0.2, 0.3], [0.2, 0.1, 0.4]], {1: 2}, 0),  # worse, as of this epoch
        ([[0.5, 0.6, 0.7], [0.1, 0.2, 0.3]], {0: 1, 1: 2}, 2),  # the better one was stopped before
        ([[0.9, math.nan], [0.1, 0.2, 0.3]], {1: 1}, 1),  # the better one died
        ([[0.9, math.nan], [0.1, 0.2, 0.3]], {0: 1, 1: 1}, 1),  # it was stopped before it could
        ([[0.9, math.nan], [0.1, 0.2, 0.3]], {}, 0),  # its own end is no pruning
        ([[0.1, 0.2, 0.3], [0.2, 0.3, 0.4]], {0: 3, 1: 3}, 0),  # nor is the last epoch
    ],
)
def test_a_pruning_is_wrong_where_nobody_alive_was_better_at_that_epoch(curves, stops, wrong):
    table = written(*curves)
    outcome = simulate(Scripted(table, stops), table, seed=0, workers=1, trials=len(curves))
    assert outcome.wrong_prunings == wrong


def test_a_pause_is_a_pruning_only_if_the_trial_never_goes_on():
    table = written([0.1, 0.2, 0.3], [0.2, 0.3, 0.4])
    for resumed, wrong, epochs in (((), 2, 2), ((1,), 1, 4), ((0, 1), 0, 6)):
        outcome = simulate(Scripted(table, {0: 1, 1: 1}, resumed), table, seed=0, workers=1, trials=2)
        assert (outcome.wrong_prunings, outcome.epochs, outcome.trials) == (wrong, epochs, 2)


def test_a_search_that_tries_every_curve_has_no_regret_and_its_winner_is_a_trial_that_lives(content):
    table = Table(content)
    outcome = simulate(Scripted(table), table, seed=0, budget=math.inf, trials=len(table.curves))
    assert summarize_budget({"ours": [outcome]}, table.best)["ours"]["regret"][0] == 0
    table = written([0.9, math.nan], [0.5, 0.7, 0.6], [0.1, 0.2, 0.3])
    outcome = simulate(Scripted(table), table, seed=0, trials=3)
    assert outcome.value == 0.7  # of its best epoch
    assert table.best == 0.6


@pytest.mark.parametrize("name", METHODS)
def test_a_search_of_so_many_trials_begins_exactly_these_and_brings_them_to_an_end(name, content):
    skip_if_missing(name)
    table, open_trials = Table(content), set()

    class Watched:
        def __init__(self) -> None:
            self.decider = METHODS[name](table.space, replace(table.search, trials=7))
            if hasattr(self.decider, "resume"):
                self.resume = lambda: self.opened(self.decider.resume())

        def opened(self, job):
            if job is not None:
                open_trials.add(job[0])
            return job

        def next(self):
            return self.opened(self.decider.next())

        def report(self, key, report, value, is_last):
            goes_on = self.decider.report(key, report, value, is_last)
            if is_last or not goes_on:
                open_trials.remove(key)
            return goes_on

    assert simulate(Watched(), table, seed=0, budget=math.inf, trials=7).trials == 7
    assert not open_trials


def test_searches_of_so_many_trials_are_cached_and_variants_join_in(content, tmp_path, capsys, monkeypatch):
    (tmp_path / "table").write_bytes(content)
    (tmp_path / "variants.py").write_text(
        "import optuna, peers\n"
        "def study(space, search):\n"
        "    sampler = optuna.samplers.RandomSampler(seed=search.seed)\n"
        "    return peers.OptunaStudy(space, search, sampler, optuna.pruners.MedianPruner())\n"
        "METHODS = {'variant': study}\n"
    )
    words = ["budget", "--table", f"{tmp_path}/table", "--variants", f"{tmp_path}/variants.py", "--json"]
    words += ["--methods", "ours,variant,Optuna TPE + halving 3", "--trials", "5", "6", "--workers", "2"]

    def told(cache: str, seeds: int, jobs: int) -> dict:
        main([*words, "--seeds", f"{seeds}", "--cache", f"{tmp_path}/{cache}", "--jobs", f"{jobs}"])
        content = json.loads(capsys.readouterr().out)
        for of in content["tables"]:
            for method in of["methods"].values():
                assert method.pop("ms_per_trial") > 0
        return content

    first = told("a", 2, 2)
    assert [(of["trials"], of["workers"], set(of["methods"])) for of in first["tables"]] == [
        (trials, 2, {"ours", "variant", "Optuna TPE + halving 3"}) for trials in (5, 6)
    ]
    assert [row["best_peer"] for row in first["overview"]] == ["Optuna TPE + halving 3"] * 2
    assert told("b", 2, 1) == first
    more = told("b", 3, 1)
    monkeypatch.setattr(replay, "_search", lambda _: pytest.fail("was done again"))
    assert told("b", 3, 1) == more


def test_the_overview_tells_what_the_outcomes_say():
    def outcomes(values: list[float], epochs: list[int]) -> list[Outcome]:
        return [
            Outcome(found=False, epochs=n, trials=4, virtual_time=n / 2, seconds=1.0, value=value, wrong_prunings=i)
            for i, (value, n) in enumerate(zip(values, epochs, strict=True))
        ]

    results = {
        "ours": outcomes([0.8, 0.6], [10, 20]),
        "random": outcomes([0.9, 0.9], [1, 1]),  # an arm of ours, no peer
        "Ray TPE + ASHA 3": outcomes([0.8, 0.8], [40, 40]),
        "Ray TPE + ASHA 4": outcomes([0.7, 0.7], [20, 40]),
        "one epoch then best": outcomes([0.1, 0.1], [5, 5]),
    }
    summary = summarize_budget(results, 0.9)
    assert summary["ours"]["regret"] == pytest.approx([0.2, 0.2])  # two standard errors
    assert summary["ours"]["wrong_prunings"] == 0.5
    row = overview(summary)
    assert (row["best_peer"], row["cheapest_as_good"]) == ("Ray TPE + ASHA 3", "Ray TPE + ASHA 4")
    assert row["best_peer_regret"] == pytest.approx([0.1, 0.0])
    assert row["regret_difference"] == pytest.approx([0.1, 0.0, 0.2])
    assert row["epochs_ratio"] == pytest.approx([0.375, 0.25, 0.5])
    assert row["cheapest_epochs_ratio"] == pytest.approx([0.5, 0.5, 0.5])
    assert overview({"random": summary["random"]}) is None
