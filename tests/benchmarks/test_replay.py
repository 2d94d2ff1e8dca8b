"""The simulator, against the real conductor and record, and against what is known by theory."""

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
from replay import METHODS, Ours, Outcome, Table, interval, main, simulate, summarize

from hpo.conductor import Conductor
from hpo.config import SearchConfig
from hpo.decide import DECISION
from hpo.record import Record
from search_spaces import load

SEARCH = SearchConfig(epochs=6, sampler="random", scheduler="none", set={"width": 4})


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
    """A search over the same curves by the conductor, one trial at a time, with a record on disk."""
    table = Table(content)
    record = Record.create(tmp_path_factory.mktemp("runs"), "real", replace(table.search, trials=16, seed=3))
    conductor = Conductor(record, table.space, (), time_is_up=lambda: False)
    while (trial := conductor.next_trial()) is not None:
        reports, epoch = table.curve(trial.params).reports, 1
        while conductor.hear(trial.number, reports[:epoch]).action == "go on":
            epoch += 1
    return record


def test_one_worker_decides_as_the_conductor_does(content, real):
    table, trials = never_found(content), real.trials()
    assert {trial.user_attrs[DECISION]["reason"] for trial in trials} == {"finished", "leaders", "diverged"}
    decider = Ours(table.space, real.search)
    simulate(decider, table, seed=0, workers=1, budget=sum(len(trial.intermediate_values) for trial in trials))
    assert len(decider.trials) == len(trials)
    for ours, theirs in zip(decider.trials, trials, strict=True):
        assert (ours.number, ours.state, ours.params) == (theirs.number, theirs.state, theirs.params)
        assert (ours.values, ours.intermediate_values) == (theirs.values, theirs.intermediate_values)
        assert ours.user_attrs == theirs.user_attrs


def test_a_record_becomes_a_table_always_of_the_same_bytes(real):
    content = replay.record(real.folder.parent, real.name)
    assert content == replay.record(real.folder.parent, real.name)
    table = Table(content)
    assert "--trials 16 --epochs 6" in table.about["command"]
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


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith("Syne Tune")])
def test_a_method_repeats_itself_and_tries_the_starting_points_first(name, content):
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
    assert [params for _, params in begun[:2]] == [dict(point) for point in table.space.starting_points]
    assert first.epochs == 60


def test_one_epoch_resumes_the_best_three_of_thirty_and_then_begins_the_next_round(content):
    table, params = never_found(content), {}
    decider = METHODS["one epoch then best"](table.space, table.search)
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
    table = Table(replay.TABLE.read_bytes())
    assert sum(curve.is_full for curve in table.curves) >= 60
    assert 0.01 <= table.top.share < 0.05
    assert table.about["command"].startswith("hpo search ")
