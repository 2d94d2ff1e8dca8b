"""The images of a search: told when it starts, recorded, and recognised by their pixels wherever they have moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from plain_search import command, without_ray
from saying import hpo_says

from hpo.cli.arguments import parser
from hpo.cli.commands import main
from hpo.remote.launch import search_arguments
from hpo.store.file_names import IMAGES
from hpo.store.record import Record
from model.data.folder_layout import parse_layout
from model.denoise import read_manifest

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def inverted(pictures: Path, to: Path) -> Path:
    to.mkdir()
    for path in pictures.iterdir():
        Image.fromarray(255 - np.array(Image.open(path))).save(to / path.name)
    return to


def test_a_search_goes_on_where_its_images_have_moved_and_on_no_others(pictures, runs, tmp_path, plainly, capsys):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(pictures, here)
    code, _, err = hpo_says(*command(here, runs, "--trials", "1"), capsys=capsys)
    assert code == 0
    assert f"{here}: 1 train, 1 validation, 1 test images: grey, 8-bit; validation and test are a tenth each" in err
    digest = Record(runs, "first").metadata()[IMAGES]

    here.rename(there)
    more = ["search", "first", "--runs", str(runs), "--trials", "2"]
    code, _, err = hpo_says(*more, capsys=capsys)
    assert code == 2
    assert f"data={here}: is not a folder" in err
    assert "give its new path with --data" in err

    before = (runs / "first" / "search.json").read_bytes()
    others = inverted(there, tmp_path / "others")
    code, _, err = hpo_says(*more, "--data", str(others), capsys=capsys)
    assert code == 2
    assert f"first: its trials saw other images than {others} has now" in err
    assert f"their digest begins with {digest[:12]}, that of these with " in err
    assert (runs / "first" / "search.json").read_bytes() == before

    assert main([*more, "--data", str(there)]) == 0
    record = Record(runs, "first")
    assert (len(record.trials()), record.search.data, record.metadata()[IMAGES]) == (2, str(there), digest)
    assert main([*more, "--trials", "3"]) == 0  # and from now on without a word


def test_an_export_takes_its_images_from_where_they_are_now(pictures, searched_plainly, tmp_path, capsys):
    runs, there = tmp_path / "runs", tmp_path / "there"
    shutil.copytree(searched_plainly, runs)
    shutil.copytree(pictures, there)
    options = ["export", "first", "--runs", str(runs), "--to", str(tmp_path / "model")]
    code, _, err = hpo_says(*options, "--data", str(inverted(pictures, tmp_path / "others")), capsys=capsys)
    assert code == 2
    assert "first: its trials saw other images than" in err
    assert not (tmp_path / "model").exists()
    assert main([*options, "--data", str(there)]) == 0
    manifest = read_manifest(tmp_path / "model")
    assert manifest["data"]["data"] == str(there)
    was = read_manifest(searched_plainly / "first" / "export")
    assert manifest["metrics"] == was["metrics"]
    assert Record(runs, "first").search.data == str(pictures)  # looking changes nothing


def test_an_export_in_int8_has_the_figures_of_both_networks(searched_plainly, tmp_path, capsys):
    runs = tmp_path / "runs"
    shutil.copytree(searched_plainly, runs)
    options = ["export", "first", "--runs", str(runs), "--precision", "int8"]
    code, out, err = hpo_says(*options, "--max-loss-db", "100", capsys=capsys)
    assert code == 0
    manifest = read_manifest(runs / "first" / "export-int8")
    assert manifest["precision"] == "int8"
    assert manifest["size_mb"] < manifest["float32"]["size_mb"]
    assert f"| int8 | {manifest['size_mb']:.2f} |" in out
    assert f"| fp32 | {manifest['float32']['size_mb']:.2f} |" in out
    code, out, err = hpo_says("evaluate", str(runs / "first" / "export-int8"), "--latency", "--json", capsys=capsys)
    assert code == 0
    assert json.loads(out)["latency"]["recorded"] == manifest["latency"]

    code, _, err = hpo_says(*options, "--max-loss-db", "-1", capsys=capsys)
    assert code == 2
    assert "max_loss_db=-1" in err.replace("-loss-db", "_loss_db")
    assert read_manifest(runs / "first" / "export-int8") == manifest


@pytest.mark.parametrize("asked", [[], ["--range", "0", "60000"]])
def test_a_search_of_16_bits_has_its_range_on_record(pictures, tmp_path, monkeypatch, capsys, asked):
    runs, recorded = tmp_path / "runs", (0, 60000 if asked else 65535)
    without_ray(monkeypatch, exports=not asked)
    (tmp_path / "deep").mkdir()
    for path in pictures.iterdir():
        deep = np.array(Image.open(path)).astype(np.uint16) * 235 + 3
        (tmp_path / "deep" / path.name).write_bytes(imagecodecs.png_encode(deep))
    options = command(tmp_path / "deep", runs, "--trials", "1", "--noise", "gaussian:12%", *asked)
    code, _, err = hpo_says(*options, capsys=capsys)
    assert code == 0
    assert f": grey, 16-bit, 0 ... {recorded[1]}; " in err
    record = Record(runs, "first")
    assert record.search.range == recorded
    assert json.loads((runs / "first" / "search.json").read_text())["search"]["range"] == list(recorded)
    assert main([*options, "--trials", "2"]) == 0  # it goes on
    code, _, err = hpo_says("search", "first", "--runs", str(runs), "--range", "0", "4095", capsys=capsys)
    assert code == 2
    assert "range: it has (0.0, " in err
    if not asked:
        manifest = read_manifest(runs / "first" / "export")
        assert (manifest["data"]["range"], manifest["model"]["depth"]) == ([0, 65535], "uint16")
        code, out, _ = hpo_says("evaluate", str(runs / "first" / "export"), "--json", capsys=capsys)
        assert code == 0
        assert json.loads(out)["test"] == manifest["metrics"]["test"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--range", "0", "4095"], "range=0 4095: is for a folder of 16-bit or float32 images"),
        (["--range", "x", "1"], "range=('x', 1.0): must be a number and a number or None, such as 0 4095"),
        (["--data", "deep", "--range", "7", "3"], "range=7 3: must be LOW HIGH"),
    ],
)
def test_a_range_that_is_none_is_told_before_anything_starts(words, told, tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    code, _, err = hpo_says("search", "first", *words, capsys=capsys)
    assert code == 2
    assert told in err
    assert not (tmp_path / "runs").exists()


def test_a_range_comes_to_the_head_of_a_cluster_as_it_was_typed():
    asked = parser().parse_args(["launch", "cluster.yaml", "first", "--range", "0", "4095"])
    words = search_arguments({"range": tuple(asked.range)})
    assert parser().parse_args(["search", "first", *words]).range == asked.range == [0, 4095]


def test_a_training_by_hand_tells_what_it_trains_on(pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / "photos")
    (tmp_path / "photos" / "raw.dng").write_bytes(b"")
    small = ["--epochs", "1", "--crop", "16", "--images-per-epoch", "8", "--set", "width=2", "--set", "batch_size=2"]
    code, _, err = hpo_says("train", "--to", "out", "--data", "photos", *small, capsys=capsys)
    assert code == 0
    assert "photos: 1 train, 1 validation, 1 test images: grey, 8-bit; " in err
    assert "photos: skipped, for their names: .dng: 1 (raw.dng)" in err


def test_a_search_of_folders_that_look_like_pairs_does_not_begin(pictures, tmp_path, capsys):
    for name in ("lq", "hq"):
        shutil.copytree(pictures, tmp_path / "photos" / name)
    mistakes: list[str] = []
    parse_layout([path.relative_to(tmp_path / "photos").as_posix() for path in tmp_path.rglob("*.png")], mistakes)
    code, _, err = hpo_says("search", "first", "--data", "photos", "--trials", "0", capsys=capsys)
    assert code == 2
    assert len(mistakes) == 2
    assert all(mistake in err for mistake in [*mistakes, "trials=0"])
