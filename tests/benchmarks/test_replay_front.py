"""Replays on several objectives, against hand-made tables and against brute force."""

import gzip
import itertools
import json
import math

import numpy as np
import optuna
import pytest
from front_report import FrontCase, epochs_ratio, markdown_front, summarize_front
from replay import ARCHITECTURE, main
from replay_front import FrontOutcome, Landscape, compute_volume, dominates, simulate_front, volume_at

CATEGORIES = {"loss": ["l1", "ssim"], "norm": ["batch", "none"]}


def table(folder, curves, latencies):
    """A table over two categories; curves: (loss, norm, PSNR by epoch)."""
    distributions = {
        name: json.loads(optuna.distributions.distribution_to_json(optuna.distributions.CategoricalDistribution(of)))
        for name, of in CATEGORIES.items()
    }
    rows = [
        {
            "params": {"loss": loss, "norm": norm},
            "reason": "finished" if len(psnr) == 3 else "diverged",
            "ssim": [0.5] * len(psnr),
            "psnr_db": psnr,
        }
        for loss, norm, psnr in curves
    ]
    about = {"search": {"space": "losses_and_rates", "epochs": 3}, "distributions": distributions}
    path = folder / "architecture.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"about": about, "curves": rows}).encode()))
    figures = [{"latency": latency, "params": 1, "size_mb": 1.0} for latency in latencies]
    (folder / "architecture_figures.json").write_text(json.dumps({"figures": figures}))
    return path


@pytest.fixture
def landscape(tmp_path):
    curves = [("l1", "batch", [22.0, 24.0, 23.0]), ("ssim", "batch", [25.0, 26.0, 30.0]), ("l1", "none", [40.0, 7.0])]
    return Landscape(table(tmp_path, curves, [1.0, 10.0, 0.5]), ("psnr", "latency"))


class Scripted:
    """Runs given configurations, and stops each after so many epochs."""

    def __init__(self, *jobs):
        self.jobs, self.known, self.begun = jobs, {}, 0

    def next(self):
        if self.begun == len(self.jobs):
            return None
        self.begun += 1
        return self.begun - 1, self.jobs[self.begun - 1][0]

    def begin(self, key, known):
        self.known[key] = known["latency"]

    def report(self, key, report, vector, is_last):
        return report.epoch < self.jobs[key][1]


def test_the_volume_is_that_of_the_union_of_boxes():
    points = np.random.default_rng(0).random((6, 2))
    grid = (np.array(list(itertools.product(range(200), repeat=2))) + 0.5) / 200
    covered = (grid[:, None] < points[None]).all(axis=-1).any(axis=1).mean()
    assert compute_volume([tuple(point) for point in points]) == pytest.approx(covered, abs=0.005)


def test_a_search_is_told_known_figures_first_and_its_front_grows_by_its_reports(landscape):
    l1, ssim = {"loss": "l1", "norm": "batch"}, {"loss": "ssim", "norm": "batch"}
    decider = Scripted((l1, 3), (ssim, 3))
    outcome = simulate_front(decider, landscape, seed=0, workers=1, budget=100, varies=False)
    assert decider.known == {0: 1.0, 1: 10.0}
    assert outcome.epochs == 6
    assert outcome.trials == 2
    assert outcome.wrong_prunings == 0
    fast, slow = math.log(11 / 1) / math.log(11), math.log(11 / 10) / math.log(11)  # of the recorded, 10 ms and 1 ms
    heights = [(psnr - 20.55) / (30 - 20.55) for psnr in (22.0, 24.0, 25.0, 26.0, 30.0)]
    whole = heights[1] * fast + (heights[4] - heights[1]) * slow
    first, second = heights[0] * fast / whole, heights[1] * fast / whole
    grown = [(heights[1] * fast + (height - heights[1]) * slow) / whole for height in heights[2:]]
    expected = [(1, first), (2, second), *zip((4, 5, 6), grown, strict=True)]  # epoch 3 of the first one is no better
    assert outcome.volumes == [(epoch, pytest.approx(volume)) for epoch, volume in expected]
    assert outcome.volumes[-1][1] == pytest.approx(1)
    assert volume_at(outcome, np.array([0.5, 1, 3.5, 1e9])) == pytest.approx([0, first, second, 1])


def test_a_configuration_that_diverges_never_counts_for_the_front(landscape):
    outcome = simulate_front(
        Scripted(({"loss": "l1", "norm": "none"}, 3)), landscape, seed=0, workers=1, budget=100, varies=False
    )
    assert outcome.epochs == 2
    assert not outcome.volumes


def test_a_pruning_is_wrong_where_the_trial_was_on_the_front_of_its_epoch(landscape):
    l1, ssim = {"loss": "l1", "norm": "batch"}, {"loss": "ssim", "norm": "batch"}
    for jobs, wrong in ((((l1, 3), (ssim, 1)), 1), (((ssim, 3), (l1, 1)), 1), (((l1, 3), (l1, 1)), 1)):
        assert (
            simulate_front(Scripted(*jobs), landscape, seed=0, workers=1, budget=100, varies=False).wrong_prunings
            == wrong
        )


def test_a_dominated_trial_is_pruned_rightly(tmp_path):
    curves = [("l1", "batch", [22.0, 24.0, 25.0]), ("ssim", "batch", [21.0, 23.0, 24.0])]
    landscape = Landscape(table(tmp_path, curves, [1.0, 2.0]), ("psnr", "latency"))
    jobs = [({"loss": loss, "norm": "batch"}, epochs) for loss, epochs in (("l1", 3), ("ssim", 1))]
    assert simulate_front(Scripted(*jobs), landscape, seed=0, workers=1, budget=100, varies=False).wrong_prunings == 0


def test_a_configuration_learns_like_the_nearest_one_although_a_category_differs(landscape):
    curve = landscape.table.curve({"loss": "ssim", "norm": "none"})  # none of the recorded ones has both
    assert [report.psnr_db for report in curve.reports] in ([25.0, 26.0, 30.0], [40.0, 7.0])


def outcome(volumes, epochs):
    return FrontOutcome(volumes=volumes, epochs=epochs, trials=3, seconds=0.1)


def test_the_ratio_is_the_epoch_at_which_the_mean_volume_is_reached():
    ours = [outcome([(1, 0.2), (40, 0.6), (60, 0.9)], 80)] * 5
    its = [outcome([(1, 0.2), (90, 0.6)], 100)] * 5
    assert epochs_ratio(ours, its) == [0.4, 0.4, 0.4]
    assert epochs_ratio(its, ours) == [None] * 3
    of = summarize_front({"ours": ours, "it": its}, "ours")
    assert of["it"]["final_difference"] == pytest.approx([0.3] * 3)
    assert of["it"]["volumes"][2] == [0.2, 0.0]
    assert of["ours"]["volumes"][2] == [0.6, 0.0]
    text = markdown_front(FrontCase(ARCHITECTURE, ("psnr", "latency"), 4, epochs=100), of, "ours", 5)
    assert "0.40 (0.40 to 0.40)" in text
    assert "+0.300" in text


def test_domination_needs_a_difference():
    assert dominates((1, 2), (1, 1))
    assert not dominates((1, 1), (1, 1))
    assert not dominates((2, 0), (1, 1))


def test_the_figures_of_the_repository_belong_to_its_table():
    landscape = Landscape(ARCHITECTURE, ("psnr", "latency"))
    assert len({landscape.known(curve)["latency"] for curve in landscape.table.curves}) > 40
    assert landscape.volume < 1  # no configuration is the best and the fastest


@pytest.mark.parametrize(
    "name", ["random", "Optuna NSGA-II of 12", "Optuna TPE", "Syne Tune MOASHA", "NePS MO Hyperband"]
)
def test_peers_search_and_are_cached(name, tmp_path, capsys):
    if name.split()[0] in ("Syne", "NePS"):
        pytest.importorskip({"Syne": "syne_tune", "NePS": "neps"}[name.split()[0]])
    arguments = ["front", "--epochs", "60", "--seeds", "1", "--jobs", "1", "--methods", name, "--cache", str(tmp_path)]
    main(arguments)
    text = capsys.readouterr().out
    assert f"| {name} |" in text
    (cached,) = tmp_path.iterdir()
    outcome = json.loads(cached.read_text())["0"]
    assert outcome["epochs"] == 60
    assert 0.3 < outcome["volumes"][-1][1] <= 1
    cached.write_text(json.dumps({"0": {**outcome, "trials": 777}}))
    main(arguments)
    assert "| 777 |" in capsys.readouterr().out
