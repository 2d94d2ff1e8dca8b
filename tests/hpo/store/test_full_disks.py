"""Full disks and read-only ones: who writes is told the place, and with more room the same command goes on."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from curves import essence
from disks import disk, full, read_only
from plain_search import assert_best_checkpoints_are_as_recorded, command
from ray.exceptions import RayTaskError
from saying import hpo_says

import hpo.run.search
from hpo.cli.commands import main
from hpo.policy.search_config import SEARCH_FILE
from hpo.store import file_names
from hpo.store.record import Record
from model.checkpoint import load_checkpoint
from model.denoise import Denoiser
from model.export import WEIGHTS_FILE
from model.training_files import BEST, LAST

FULL = r"disk full at (\S+); free some space, then run the same command to continue$"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path / "small", megabytes=8) as made:
        yield made


def told_where(capsys: pytest.CaptureFixture[str]) -> str:
    """The place in the one line that says that the disk is full."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    found = re.search(FULL, said, re.MULTILINE)
    assert found, said
    return found[1]


def ended(runs: Path) -> dict[int, object]:
    if not (runs / "first" / SEARCH_FILE).exists():
        return {}
    return {trial.number: trial for trial in Record(runs, "first").trials() if trial.state.is_finished()}


def test_a_search_whose_disk_is_full_again_and_again_is_the_search_that_had_room(
    pictures, searched_plainly, small, plainly, capsys
):
    """At any of its writes: the room that is left is drawn."""
    rng, places, code, rounds = random.Random(8), set(), 4, 0
    checkpoint = (searched_plainly / "first/trials/00000" / BEST).stat().st_size >> 12
    while code:
        assert code == 4
        before, rounds = ended(small), rounds + 1
        assert rounds < 100
        pages = rng.choice([rng.randrange(5), checkpoint + rng.randrange(6), rng.randrange(400)])
        with full(small, but_for=pages << 12):
            code = main(command(pictures, small))
            if code:
                places.add(Path(told_where(capsys)).name)
        after = ended(small)
        assert {number: after.get(number) for number in before} == before
    print(f"full {rounds} times: {places}")
    assert places >= {"study.db", LAST}  # which small files as well depends on their sizes
    record = Record(small, "first")
    assert essence(record.trials()) == essence(Record(searched_plainly, "first").trials())
    assert_best_checkpoints_are_as_recorded(record)
    assert not list(small.rglob(".*"))


def test_a_full_disk_under_a_remote_training_is_told_as_one(pictures, small, monkeypatch, capsys):
    """The final training's: its error comes through Ray."""
    full_disk = OSError(28, "No space left on device", "runs/first/final/last.safetensors")

    def run(*_: object, **__: object) -> int:
        raise RayTaskError("report", "Traceback:\nOSError: [Errno 28]", full_disk).as_instanceof_cause()

    monkeypatch.setattr(hpo.run.search.SearchRun, "search", run)
    finish = ["--on-finish", f"cat > {small}/told"]
    assert main(command(pictures, small, *finish)) == 4
    assert told_where(capsys) == "runs/first/final/last.safetensors"
    told = json.loads((small / "told").read_text())
    assert (told["exit_code"], re.search(FULL, told["reason"])[1]) == (4, "runs/first/final/last.safetensors")


@pytest.mark.parametrize("after", [None, WEIGHTS_FILE])
def test_an_export_that_has_no_room_leaves_the_one_that_was_there(after, searched_plainly, small, capsys):
    shutil.copytree(searched_plainly, small, dirs_exist_ok=True)
    before = Denoiser(small / "first" / file_names.EXPORT).manifest
    export = ["export", "first", "--runs", str(small), "--trial", "0"]
    room = (small / "first" / file_names.EXPORT / after).stat().st_size + 40_000 if after else 0
    with full(small, but_for=room):
        assert main(export) == 4
        assert Path(told_where(capsys)).is_relative_to(small / "first")
    assert Denoiser(small / "first" / file_names.EXPORT).manifest == before
    assert not list((small / "first").glob(".*"))


def test_a_report_or_denoised_images_without_room_are_told_and_no_half_image_is_left(
    searched_plainly, pictures, small, capsys
):
    without = shutil.ignore_patterns("report.html", "*.safetensors")
    shutil.copytree(searched_plainly / "first", small / "first", ignore=without)
    with full(small):
        assert main(["report", "first", "--runs", str(small)]) == 4
        assert told_where(capsys) == str(small / "first" / "report.html")
        (small / "clean").mkdir()
        assert (
            main(["denoise", str(searched_plainly / "first/export"), str(pictures), "--to", str(small / "clean")]) == 4
        )
        assert told_where(capsys) == str(small / "clean" / "chelsea.png")
        assert list((small / "clean").iterdir()) == []
    assert main(["report", "first", "--runs", str(small)]) == 0
    assert main(["denoise", str(searched_plainly / "first/export"), str(pictures), "--to", str(small / "clean")]) == 0


def test_a_training_by_hand_goes_on_once_there_is_room(pictures, small, tmp_path, capsys):
    training = ["train", "--data", str(pictures), "--crop", "16", "--images-per-epoch", "8", "--epochs", "3"]
    training += ["--set", "width=4", "--set", "batch_size=2", "--json", "--to"]
    assert main([*training, str(tmp_path / "with room")]) == 0
    places = []
    for room in (0, 600_000):  # one and a half checkpoints
        with full(small, but_for=room):
            assert main([*training, str(small / "train")]) == 4
            places.append(Path(told_where(capsys)).name)
    assert main([*training, str(small / "train")]) == 0
    assert places == [LAST, LAST]
    (expected, _), (tensors, state) = (load_checkpoint(at / LAST) for at in (tmp_path / "with room", small / "train"))
    assert len(state["reports"]) == 3
    assert all((tensors[name] == expected[name]).all() for name in expected)


def test_where_nothing_can_be_written_it_is_told_before_anything_is_computed(
    searched_plainly, pictures, small, monkeypatch, capsys
):
    shutil.copytree(searched_plainly, small, dirs_exist_ok=True)
    monkeypatch.setattr(hpo.run.search, "load_inputs", None)  # nor are images read
    monkeypatch.setattr("model.data.data_config.DataConfig.load", None)
    commands = [
        command(pictures, small),
        ["search", "second", "--runs", str(small)],
        ["train", "--to", str(small / "train")],
        ["export", "first", "--runs", str(small)],
        ["export", "first", "--runs", str(searched_plainly), "--to", str(small / "new" / "export")],
        ["denoise", str(searched_plainly / "first/export"), str(pictures), "--to", str(small / "clean")],
        ["report", "first", "--runs", str(small)],
    ]
    with read_only(small):
        for each in commands:
            code, _, said = hpo_says(*each, capsys=capsys)
            assert code == 2
            assert re.fullmatch(rf"hpo( \w+)?: {small}\S*: cannot be written \(Read-only file system\); .*\n", said)
        assert main(["show", "first", "--runs", str(small)]) == 0
        assert "5 trials" in capsys.readouterr().out
