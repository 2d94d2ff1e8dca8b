"""The export of a front: whole searches without Ray, killed at each step, and what `hpo export --pick` makes of it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plain_search
import pytest
from drivers import GUARD_SECONDS
from drivers import driver as driver_process
from plain_search import command, photographs, without_ray

import model.export
from hpo.cli.commands import main
from hpo.policy.pareto import dominates
from hpo.policy.trial_objectives import point_of
from hpo.run import front
from hpo.store import search_results
from hpo.store.file_names import EXPORT, FRONT, FRONT_FILE
from hpo.store.record import Record
from hpo.store.study_replication import open_read_only, open_storage
from hpo.tune import trainable
from hpo.views.front_text import front_text
from model.common.errors import MachineError
from model.data.data_config import DataConfig
from model.denoise import MANIFEST, Denoiser, read_manifest, verify_files
from model.latency import Latency, _former_export
from model.training_files import BEST

SPACE = """
from dataclasses import replace
STARTING_POINTS = ()
def suggest(trial, base):
    width = trial.suggest_categorical("width", [2, 4, 8])
    return replace(base, width=width, lr_g=trial.suggest_float("lr_g", 8e-5 * width**2, 1.2e-4 * width**2))
"""  # in so few steps a higher rate is better, so that wider is better
TRIALS = 7


class Killed(BaseException):
    """The driver's end, at an instant that a test chooses."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    photographs(folder / "photographs")
    (folder / "widths.py").write_text(SPACE)
    return folder


def words(world: Path, runs: Path, *more: str) -> list[str]:
    """A search of three widths for PSNR and latency."""
    line = command(world / "photographs", runs, "--objectives", "psnr,latency", "--pruner", "none")
    place = line.index("width=4")
    return [*line[: place - 1], *line[place + 1 :], "--space", str(world / "widths.py"), "--trials", str(TRIALS), *more]


@pytest.fixture
def driver() -> Iterator[pytest.MonkeyPatch]:
    """`hpo search` without Ray; torch's former exporter writes the files, in a tenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch, exports=True)
        quick(patch)
        yield patch


def quick(patch: pytest.MonkeyPatch) -> None:
    def write(generator: Any, path: Path, shape: tuple[int, ...]) -> None:
        path.write_bytes(_former_export(generator, shape[0]))

    patch.setattr(model.export, "_write_onnx", write)


@pytest.fixture(scope="module")
def exported(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of such a search that nothing disturbed."""
    runs = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch, exports=True)
        quick(patch)
        assert main(words(world, runs)) == 0
    return runs


@pytest.fixture
def runs(exported: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(exported, tmp_path / "runs"))


def members(runs: Path) -> dict[int, Any]:
    found = search_results.front_members(Record(runs, "first"))
    assert found
    return {member.trial: member for member in found}


def networks(runs: Path) -> dict[str, str]:
    """The digests of the weights by folder; files of one network from two exports are equal."""
    folders = [path.parent for path in (runs / "first").glob(f"*/**/{MANIFEST}")]
    return {
        folder.relative_to(runs / "first").as_posix(): verify_files(folder)["files"]["generator.safetensors"]
        for folder in folders
    }


def test_the_search_ends_with_its_front_and_the_best_of_the_first_objective(exported):
    record, found = Record(exported, "first"), members(exported)
    points = {number: point_of(member.values, record.search) for number, member in found.items()}
    assert len(found) >= 2
    assert not any(dominates(a, b) for a in points.values() for b in points.values())
    best = next(iter(found))
    assert best == search_results.winner(record) == max(found, key=lambda number: found[number].values["psnr"])
    assert networks(exported) == networks(exported) | {EXPORT: networks(exported)[f"{FRONT}/{best:05}"]}
    assert sorted(networks(exported)) == sorted([EXPORT, *(f"{FRONT}/{number:05}" for number in found)])
    assert search_results.is_exported(record)


def test_each_member_has_its_figures_in_the_note_the_manifest_and_the_file(exported):
    record, found = Record(exported, "first"), members(exported)
    told = json.loads((record.folder / FRONT / FRONT_FILE).read_text())
    assert told["objectives"] == ["psnr", "latency"]
    assert [member["trial"] for member in told["members"]] == list(found)
    for number, member in found.items():
        manifest = read_manifest(record.folder / str(member.folder))
        assert manifest["origin"]["trial"] == number
        assert manifest["latency"] == member.latency
        assert member.values["latency"] == member.latency["median_ms"]
        assert member.values["psnr"] == search_results.measured_finalists(record)[str(number)]["psnr_db"]
        assert member.test["ssim"] == manifest["metrics"]["test"]["denoised"]["ssim"]
        assert member.parameters == manifest["model"]["parameters"]
        assert member.size_mb == (record.folder / str(member.folder) / "generator.onnx").stat().st_size / 1e6
        Denoiser(record.folder / str(member.folder))


@pytest.mark.parametrize("instant", ["_measure", "_publish", "copy_export", "second export", "update_manifest"])
def test_a_driver_that_is_killed_while_it_exports_is_continued_to_the_same_files(
    world, exported, driver, tmp_path, instant
):
    """No member is exported twice."""
    runs, made = tmp_path / "runs", []
    export = front.export_winner

    def traced(*arguments: Any, trial: int, **options: Any) -> Any:
        if instant == "second export" and len(made) == 1:
            raise Killed
        made.append(trial)
        return export(*arguments, trial=trial, **options)

    def dies(*_: Any, **__: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "export_winner", traced)
        if instant != "second export":
            patch.setattr(front, instant, dies)
        with pytest.raises(Killed):
            main(words(world, runs))
    assert not search_results.is_exported(Record(runs, "first"))
    instant = ""
    driver.setattr(front, "export_winner", traced)
    assert main(words(world, runs)) == 0
    assert networks(runs) == networks(exported)
    assert sorted(made) == sorted(members(runs))
    assert not list((runs / "first").glob(f"{FRONT}/.*"))


def test_a_finished_search_ends_at_once(world, runs, driver, capsys):
    driver.setattr(plain_search.front, "export_front", None)
    assert main(words(world, runs)) == 0
    assert f"its front in {runs / 'first' / FRONT}" in capsys.readouterr().err


def test_a_member_that_is_gone_is_exported_again(world, exported, runs, driver):
    gone = str(list(members(runs).values())[-1].folder)
    shutil.rmtree(runs / "first" / gone)
    assert not search_results.is_exported(Record(runs, "first"))
    assert main(words(world, runs)) == 0
    assert networks(runs) == networks(exported)


def test_more_trials_export_anew_and_remove_what_is_no_longer_a_member(world, runs, driver):
    folder = runs / "first" / FRONT / "99999"
    shutil.copytree(runs / "first" / EXPORT, folder)
    assert main(words(world, runs, "--trials", str(TRIALS + 2))) == 0
    record = Record(runs, "first")
    assert not folder.exists()
    assert sorted(networks(runs)) == sorted([EXPORT, *(str(member.folder) for member in members(runs).values())])
    for name in networks(runs):
        assert read_manifest(record.folder / name)["origin"]["trials"] == TRIALS + 2


def test_a_small_front_has_the_best(world, runs, driver):
    shutil.rmtree(runs / "first" / EXPORT)
    assert main(words(world, runs, "--front", "1")) == 0
    assert list(members(runs)) == [search_results.winner(Record(runs, "first"))]


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"spoiled")])
def test_a_member_whose_checkpoint_is_lost_is_left_out_and_said_so(world, runs, driver, capsys, spoil):
    """Between its measurement and its export."""
    lost = list(members(runs))[-1]
    shutil.rmtree(runs / "first" / FRONT)
    measured = plain_search.finalists.measure_finalists

    def then_lost(context: Any) -> None:
        measured(context)
        spoil(context.record.trial_folder(lost) / BEST)

    driver.setattr(plain_search.finalists, "measure_finalists", then_lost)
    assert main(words(world, runs)) == 0
    assert lost not in members(runs)
    assert f"Trial {lost} is left out of the front: " in capsys.readouterr().err


def test_a_fast_network_that_makes_images_worse_is_no_member(world, runs, driver, capsys):
    useless = list(members(runs))[-1]
    shutil.rmtree(runs / "first" / FRONT)
    driver.setattr(front, "_makes_worse", lambda _, number: number == useless)
    assert main(words(world, runs)) == 0
    assert useless not in members(runs)
    assert f"because their images are worse than the noisy ones: trial {useless}\n" in capsys.readouterr().err


def test_a_front_without_any_checkpoint_is_told(world, runs, driver):
    shutil.rmtree(runs / "first" / FRONT)

    def lose(context: Any) -> None:
        for number in members(runs):
            (context.record.trial_folder(number) / BEST).unlink()
        for trial in context.record.trials():
            shutil.rmtree(context.record.trial_folder(trial.number), ignore_errors=True)

    driver.setattr(plain_search.finalists, "measure_finalists", lose)
    assert main(words(world, runs)) == 4


def test_a_member_that_proves_to_be_slower_than_a_better_one_leaves_the_front(world, runs, driver, capsys):
    slow = list(members(runs))[-1]
    shutil.rmtree(runs / "first" / FRONT)
    small = min(member.size_mb for member in members(runs).values())

    def measure(networks: Any, size: int, threads: int) -> list[dict[str, Any]]:
        how = {"runs": 30, "size": size, "threads": threads, "device": "cpu", "processor": "x", "provider": "x"}
        times = [9.0 if len(network) / 1e6 == small else 3.0 + i for i, network in enumerate(networks)]
        return [Latency(median_ms=ms, p95_ms=ms, onnxruntime="1", **how).as_dict() for ms in times]

    driver.setattr(plain_search.front.measure_exports, "options", lambda **_: plain_search._Remote(measure))
    assert main(words(world, runs)) == 0
    assert slow not in members(runs)
    assert f"{FRONT}/{slow:05}" not in networks(runs)
    assert f"Trial {slow} leaves the front: measured side by side, trial " in capsys.readouterr().err


# --- hpo export --pick ---------------------------------------------------------------------------------------------


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MachineError("images were read")

    monkeypatch.setattr(DataConfig, "load", refuse)
    monkeypatch.setattr(DataConfig, "load_test", refuse)


def pick(runs: Path, rule: str, *more: str) -> int:
    return main(["export", "first", "--runs", str(runs), "--pick", rule, *more])


def test_a_picked_member_is_copied_without_its_images(exported, no_images, tmp_path, capsys):
    found = members(exported)
    fastest = min(found, key=lambda number: found[number].values["latency"])
    for rule, number in (("best", next(iter(found))), ("fastest", fastest), ("fastest-within:99dB", fastest)):
        assert pick(exported, rule, "--to", str(tmp_path / rule[:7])) == 0
        assert verify_files(tmp_path / rule[:7]) == read_manifest(exported / "first" / str(found[number].folder))
        assert f"{rule}: trial {number}" in capsys.readouterr().err


def test_a_picked_member_whose_export_is_gone_is_exported(runs, tmp_path, monkeypatch):
    quick(monkeypatch)
    found = members(runs)
    number = list(found)[-1]
    shutil.rmtree(runs / "first" / str(found[number].folder))
    assert pick(runs, "fastest", "--to", str(tmp_path / "to")) == 0
    assert read_manifest(tmp_path / "to")["origin"]["trial"] == number


def test_during_a_search_the_front_so_far_is_picked_from(world, driver, tmp_path, capsys):
    runs, trained = tmp_path / "runs", []
    train = plain_search.train

    def dies(loop: Any, trial: Any, placed: Any) -> None:
        if trial.number == 4:
            raise Killed
        trained.append(trial.number)
        train(loop, trial, placed)

    driver.setattr(plain_search, "train", dies)
    with pytest.raises(Killed):
        main(words(world, runs))
    assert pick(runs, "fastest", "--to", str(tmp_path / "to")) == 0
    manifest, record = read_manifest(tmp_path / "to"), Record(runs, "first")
    widths = [record.trial(number).params["width"] for number in trained]
    assert record.trial(manifest["origin"]["trial"]).params["width"] == min(widths)
    assert manifest["metrics"]["test"] is None
    assert main(["export", "first", "--runs", str(runs)]) == 0
    assert "was not measured on the test images" in capsys.readouterr().err


def test_a_front_has_its_table_and_sentences_that_help_to_choose(exported):
    record, found = Record(exported, "first"), members(exported)
    lines = front_text(record, list(found.values())).splitlines()
    assert lines[0].startswith(f"Front of psnr and latency, exported to {exported / 'first' / FRONT}; latency of ")
    assert lines[0].endswith(" one 16x16 image, 1 thread of a CPU")
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| trial")]
    assert [int(row.split("|")[1]) for row in rows] == list(found)
    assert any(line.startswith("The fastest within 0.1 dB of the best") for line in lines)
    assert lines[-1] == f"To copy one of them: hpo export first --runs {exported} --pick fastest-within:0.1dB --to DIR"


def test_the_members_are_measured_without_waiting_for_other_processes(monkeypatch):
    """What the task passes on; plain_search has another in its place."""
    asked = {}
    monkeypatch.setattr(trainable, "measure_latencies", lambda files, **options: asked.update(options) or [])
    assert trainable.measure_exports._function([b"network"], 64, 1) == []
    assert asked == {"size": 64, "threads": 1, "counts_waiting": False}


# --- with Ray --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(2 * GUARD_SECONDS)
def test_a_search_with_a_storage_that_is_killed_among_its_exports_continues_with_them(world, tmp_path):
    """The whole command, with latencies that are measured, and with what another machine finds in the storage."""
    runs, storage = tmp_path / "runs", tmp_path / "storage"
    storage.mkdir()
    options = [*words(world, runs, "--storage", str(storage))[2:]]
    with driver_process(tmp_path, options) as running:
        running.wait_for(lambda: bool(list(runs.glob(f"first/{FRONT}/*/{MANIFEST}"))))
        running.process.send_signal(signal.SIGKILL)
        running.process.communicate(timeout=GUARD_SECONDS)
        assert running.left_after(seconds=10) == []
    weights = {path: path.read_bytes() for path in runs.glob(f"first/{FRONT}/*/generator.safetensors")}
    assert weights
    with driver_process(tmp_path, options) as running:
        out, errors = running.process.communicate(timeout=GUARD_SECONDS)
        assert running.process.returncode == 0, errors
    assert out.count("| trial |") == 1
    assert all(path.read_bytes() == content for path, content in weights.items() if path.exists())
    with open_read_only(tmp_path / "elsewhere", "first", open_storage(str(storage), runs)) as record:
        assert search_results.is_exported(record)
        found = search_results.front_members(record)
        assert found
        for member in found:
            folder = record.fetch(record.folder / str(member.folder))
            assert verify_files(folder)["latency"]["runs"] >= 30
        assert {name.split("/")[1] for name in record.storage.names(f"{FRONT}/")} == {
            FRONT_FILE,
            *(str(member.folder).split("/")[1] for member in found),
        }
    assert main(["export", "first", "--storage", str(storage), "--pick", "fastest", "--to", str(tmp_path / "to")]) == 0
    Denoiser(tmp_path / "to")
