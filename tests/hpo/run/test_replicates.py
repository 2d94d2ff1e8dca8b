"""Replicates: the finalists' settings trained with fresh seeds, through kills, failures and a cost limit."""

from __future__ import annotations

import copy
import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from drivers import GUARD_SECONDS, driver, finished
from plain_search import EPOCHS, command, photographs, without_ray

from hpo.cli.commands import main
from hpo.cluster.budget import TimeAndCostBudget
from hpo.policy.trial_attributes import CONFIG
from hpo.run import finalists, replicates
from hpo.run.replicates import replicate_seed
from hpo.store import file_names, search_results
from hpo.store.record import Record
from hpo.store.search_file import list_names
from model.config import TrainConfig
from model.data.device_images import DeviceImages
from model.denoise import MANIFEST
from model.trainer import validate
from model.training_files import BEST
from model.training_run import TrainingRun

SEEDS = 2
REPLICATES = ("--replicates", str(SEEDS))


class Killed(BaseException):
    """The driver's end, at an instant that a test chooses."""


def noted(runs: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """What the replicates gave. Their checkpoints hold times, so that two of the same training have other digests."""
    found = Record(runs, "first").metadata()[file_names.REPLICATES]
    return {
        number: {i: {**one, "sha256": bool(one.get("sha256"))} for i, one in of.items()} for number, of in found.items()
    }


@pytest.fixture(scope="module")
def images_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("images") / "photographs")


@pytest.fixture(scope="module")
def undisturbed(images_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a search with replicates that nothing disturbed."""
    runs = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        assert main(command(images_folder, runs, *REPLICATES)) == 0
    return runs


def test_each_finalist_is_trained_with_the_same_fresh_seeds_and_measured(undisturbed):
    record = Record(undisturbed, "first")
    measured = noted(undisturbed)
    assert measured.keys() == record.metadata()[file_names.FINALISTS].keys()
    fresh = [replicate_seed(record.search.seed, index) for index in range(SEEDS)]
    assert len({*fresh, record.search.seed}) == SEEDS + 1
    for of in measured.values():
        assert [of[str(index)]["seed"] for index in range(SEEDS)] == fresh
        assert all(one["epochs"] == EPOCHS and one["sha256"] for one in of.values())
    assert not (record.folder / file_names.REPLICATES).exists()


def test_a_replicate_is_the_training_of_its_settings_with_another_seed(undisturbed, tmp_path):
    """As a plain training gives it, without the search."""
    record = Record(undisturbed, "first")
    number, of = next(iter(noted(undisturbed).items()))
    settings = record.trial(int(number)).user_attrs[CONFIG]
    data = record.search.data_config()
    images = DeviceImages.to_device(data.load(), data.noise, torch.device("cpu"), num_validation=1_000)
    run = TrainingRun(TrainConfig.from_dict({**settings, "seed": of["1"]["seed"]}), images, tmp_path, "balanced")
    for _ in range(EPOCHS):
        run.run_epoch()
    best = max(report.ssim + report.psnr_db / 40 for report in run.reports)
    assert of["1"]["value"] == pytest.approx(best, abs=1e-5)
    assert (tmp_path / BEST).exists()


@pytest.mark.parametrize("calls", [1, 3, 6, 10, 15])
def test_a_driver_that_is_killed_among_the_replicates_ends_with_the_same_measurements(
    images_folder, undisturbed, tmp_path, calls
):
    """After so many answers of the trainings; the next driver trains no epoch again that was on disk."""
    runs, begun = tmp_path / "runs", []
    words = command(images_folder, runs, *REPLICATES)
    run_epoch = TrainingRun.run_epoch

    def traced(run: TrainingRun) -> Any:
        report = run_epoch(run)
        begun.append((run.folder, report.epoch))
        return report

    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        patch.setattr(TrainingRun, "run_epoch", traced)
        answer, left = ray.get, [calls]
        wait = ray.wait

        def dies(waiting: list[Any], **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return wait(waiting, **options)

        patch.setattr(ray, "wait", dies)
        with pytest.raises(Killed):
            main(words)
        assert answer is ray.get
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        patch.setattr(TrainingRun, "run_epoch", traced)
        assert main(words) == 0
    assert noted(runs) == noted(undisturbed)
    assert search_results.winner(Record(runs, "first")) == search_results.winner(Record(undisturbed, "first"))
    assert len(begun) == len(set(begun))


def test_a_search_that_is_done_gets_replicates_later_and_then_more(images_folder, undisturbed, tmp_path):
    runs = tmp_path / "runs"
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        assert main(command(images_folder, runs)) == 0
        assert file_names.REPLICATES not in Record(runs, "first").metadata()
        assert main(command(images_folder, runs, *REPLICATES)) == 0
        assert noted(runs) == noted(undisturbed)
        assert main(command(images_folder, runs, "--replicates", "3")) == 0
    for number, of in noted(runs).items():
        assert of.items() >= noted(undisturbed)[number].items()
    assert search_results.replicate_race(Record(runs, "first")).is_over


def run_phase(images_folder: Path, runs: Path, undisturbed: Path, change: Callable[[pytest.MonkeyPatch], None]) -> None:
    """The undisturbed search, with a change."""
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        change(patch)
        assert main(command(images_folder, runs, *REPLICATES)) == 0


def test_a_training_that_collapses_counts_as_the_noisy_images_and_its_finalist_is_out(
    images_folder, undisturbed, tmp_path, capsys
):
    best, *_ = search_results.ranked_finalists(Record(undisturbed, "first"))
    rates = Record(undisturbed, "first").trial(best).user_attrs[CONFIG]["lr_g"]

    def collapse(patch: pytest.MonkeyPatch) -> None:
        advance = replicates._Replicates._continue

        def continue_(self: Any, replicate: Any, result: Any) -> None:
            fails = replicate.config.lr_g == rates and replicate.index == 1
            patch.setattr(replicates, "failure_reason", lambda *_, **__: "collapsed" if fails else None)
            advance(self, replicate, result)

        patch.setattr(replicates._Replicates, "_continue", continue_)

    runs = tmp_path / "runs"
    run_phase(images_folder, runs, undisturbed, collapse)
    record = Record(runs, "first")
    failed = noted(runs)[str(best)]["1"]
    assert (failed["outcome"], failed["sha256"]) == ("collapsed", False)
    data = record.search.data_config()
    images = DeviceImages.to_device(data.load(), data.noise, torch.device("cpu"), num_validation=1_000)
    noisy = validate(torch.nn.Identity(), images)
    assert failed["psnr_db"] == pytest.approx(noisy["psnr_db"], abs=1e-4)
    assert search_results.winner(record) != best
    assert search_results.replicate_race(record).dropped[best].failures == 1
    assert f"Trial {best} is out: 1 of its 2 trainings failed" in capsys.readouterr().err


def test_at_the_cost_limit_the_replicates_end_and_what_they_gave_counts(images_folder, undisturbed, tmp_path, capsys):
    allowed = [12]

    def limit(patch: pytest.MonkeyPatch) -> None:
        def allows(_: TimeAndCostBudget) -> bool:
            allowed[0] -= 1
            return allowed[0] >= 0

        patch.setattr(TimeAndCostBudget, "allows_replicate_epoch", allows)

    runs = tmp_path / "runs"
    run_phase(images_folder, runs, undisturbed, limit)
    assert "The cost limit ends the replicates early" in capsys.readouterr().err
    before = copy.deepcopy(noted(runs))
    assert 0 < sum(map(len, before.values())) < 3 * SEEDS
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        assert main(command(images_folder, runs, *REPLICATES)) == 0
    assert noted(runs) == noted(undisturbed)


def test_with_a_storage_the_replicates_leave_nothing_in_it(images_folder, undisturbed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = tmp_path / "stored"
    stored.mkdir()
    without_ray(monkeypatch)
    measure = finalists.measure_finalists

    def upload_and_measure(context: Any) -> None:  # without Ray the trials write into the driver's folder
        for path in context.record.folder.glob(f"trials/*/{BEST}"):
            context.record.storage.put(path.relative_to(context.record.folder).as_posix(), path)
        measure(context)

    monkeypatch.setattr(finalists, "measure_finalists", upload_and_measure)
    assert main([*command(images_folder, tmp_path / "runs", *REPLICATES), "--storage", str(stored)]) == 0
    assert noted(tmp_path / "runs") == noted(undisturbed)
    assert list((stored / "first" / "trials").rglob("*.safetensors"))
    assert not [path for path in (stored / "first").rglob("*") if path.is_file() and "replicates" in path.parts]


def test_the_manifest_has_the_choice_and_counts_the_reads_of_the_test_images(images_folder, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    without_ray(monkeypatch, exports=True)
    assert main(command(images_folder, runs, *REPLICATES)) == 0
    record = Record(runs, "first")
    export = record.folder / file_names.EXPORT
    told = json.loads((export / MANIFEST).read_text())["certificate"]
    winner = search_results.winner(record)
    checkpoint = record.trial_folder(winner) / BEST
    assert told["exported"]["trial"] == winner
    assert told["exported"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert told["checkpoints_sha256"][str(winner)]["trial"] == told["exported"]["sha256"]
    assert told["seeds"] == {"search": 9, "replicates": [replicate_seed(9, index) for index in range(SEEDS)]}
    data = record.search.data_config()
    assert told["validation_images"]["count"] == len(data.load().validation)
    assert told["test_images"] == {"count": len(data.load_test()), "reads_before": 0}
    card = (export / "README.md").read_text()
    assert all(line.strip() in card for line in told["statement"])
    assert "for the first time" in told["statement"][-1]
    assert search_results.is_exported(record)
    assert main(["export", "first", "--runs", str(runs), "--to", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / MANIFEST).read_text())["certificate"]
    assert again["test_images"]["reads_before"] == 1
    assert main([*command(images_folder, runs, *REPLICATES), "--final-epochs", "1"]) == 0  # a second export
    assert [read["trials"] for read in Record(runs, "first").metadata()[file_names.TEST_READS]] == [5, 5]


@pytest.mark.parametrize("count", ["-1", "1", "1001", "two"])
def test_replicates_are_none_or_at_least_two(images_folder, tmp_path, capsys, count):
    assert main(command(images_folder, tmp_path / "runs", "--replicates", count)) == 2
    assert "replicates=" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(3 * GUARD_SECONDS)
def test_a_search_that_is_killed_among_its_replicates_continues_with_them(tmp_path):
    """By SIGKILL, under Ray, with two trainings at a time."""
    options = ["--trials", "3", "--epochs", "2", "--images-per-epoch", "256", "--pruner", "none", "--replicates", "2"]
    options += ["--max-concurrent", "2", "--wandb", "disabled"]
    options += ["--set", "width=4", "--set", "dropout=0", "--set", "batch_size=16"]

    def some_are_done() -> bool:
        runs = tmp_path / "killed" / "runs"
        if "first" not in list_names(runs):
            return False
        of_finalists = Record(runs, "first").metadata().get(file_names.REPLICATES, {}).values()
        return sum(map(len, of_finalists)) >= 1

    for folder in (tmp_path / "killed", tmp_path / "undisturbed"):
        folder.mkdir()
    with driver(tmp_path / "killed", options) as running:
        running.wait_for(some_are_done)
        running.process.send_signal(signal.SIGKILL)
        running.process.communicate(timeout=GUARD_SECONDS)
        assert running.left_after(seconds=10) == []
    begun = noted(tmp_path / "killed" / "runs")
    for folder in (tmp_path / "killed", tmp_path / "undisturbed"):
        done = finished(folder, options)
        assert done.returncode == 0, done.stderr
    after, expected = (noted(folder / "runs") for folder in (tmp_path / "killed", tmp_path / "undisturbed"))
    assert all(after[number].items() >= of.items() for number, of in begun.items())
    drawn = [
        {n: {i: (one["seed"], one["epochs"]) for i, one in of.items()} for n, of in notes.items()}
        for notes in (after, expected)
    ]
    assert drawn[0] == drawn[1]
    for number, of in expected.items():
        for index, one in of.items():
            assert after[number][index]["value"] == pytest.approx(one["value"], rel=1e-5)
    json.dumps(after, allow_nan=False)
