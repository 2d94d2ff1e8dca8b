"""The command line. What it refuses: test_bad_input.py."""

from __future__ import annotations

import functools
import io
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from saying import RayStartedError, hpo_says
from tensorboard_files import curves_in

import hpo.store.study_database
import model.data.image_sets
import model.training_run
from hpo.cli import arguments
from hpo.cli.commands import main
from hpo.cli.search_options import read_search_options
from hpo.policy.search_config import SearchConfig
from hpo.store.file_names import IMAGES
from hpo.store.record import Record
from hpo.tune import ray_session
from model.common.errors import ErrorCollector
from model.config import FIELDS
from model.data.fashion_mnist import fashion_mnist
from model.data.noise import KINDS
from model.denoise import read_manifest

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def test_a_wrong_option_is_answered_without_loading_what_a_search_needs():
    code = (
        "import sys; from hpo.cli.commands import main\n"
        "try: main(['search', 'first', '--trails', '3'])\n"
        "except SystemExit as stop: print(stop.code, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    exit_code, *modules = done.stdout.split()
    assert exit_code == "2"
    assert not {"torch", "ray", "optuna", "wandb", "numpy", "rich"} & set(modules)


@pytest.mark.parametrize("command", ["search", "train"])
def test_the_help_names_every_noise(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, kind in KINDS.items():
        assert ":".join([name, *(parameter.name.upper() for parameter in kind.PARAMETERS)]) in shown


def test_no_searches_are_no_error(capsys):
    assert hpo_says("list", capsys=capsys) == (0, "", "No searches in runs. `hpo search NAME` starts one.\n")
    code, out, _ = hpo_says("list", "--json", capsys=capsys)
    assert (code, json.loads(out)) == (0, {"searches": []})
    assert not Path("runs").exists()


def test_a_wrong_name_or_trial_is_told_with_what_there_is(done, capsys):
    assert "Did you mean first?" in hpo_says("show", "frist", capsys=capsys)[2]
    code, _, err = hpo_says("export", "first", "--trial", "8", capsys=capsys)
    assert (code, err) == (2, "hpo: trial=8: first has the trials 0 to 7\n")


def test_a_search_with_trials_is_listed_and_shown_and_its_json_is_all_of_stdout(done, capsys):
    (listed,) = json.loads(hpo_says("list", "--json", capsys=capsys)[1])["searches"]
    assert (listed["name"], listed["trials"], listed["exported"]) == ("first", 8, False)
    assert "8/8 trials" in hpo_says("list", capsys=capsys)[1]
    shown = json.loads(hpo_says("show", "first", "--json", capsys=capsys)[1])
    assert [row["value"] for row in shown["trials"]] == sorted((row["value"] for row in shown["trials"]), reverse=True)
    assert f"winner: trial {shown['winner']}" in hpo_says("show", "first", capsys=capsys)[1]
    assert listed["ssim"] == shown["trials"][0]["ssim"]


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        (["--seed", "4"], "seed: it has 9, not 4"),
        (["--space", "optimizers"], "space: beta1: was missing, is FloatDistribution(high=0.95"),
        (["--set", "width=8"], "set: it has {'width': 4}, not {'width': 8}"),
        (["--images-per-epoch", "512"], "images_per_epoch: it has None, not 512"),
    ],
)
def test_continuing_as_another_search_is_refused_with_the_difference(record, capsys, option, difference):
    before = (record.folder / "search.json").read_bytes()
    code, _, err = hpo_says("search", "first", *option, capsys=capsys)
    assert code == 2
    assert difference in err
    assert (record.folder / "search.json").read_bytes() == before


def test_one_setting_of_several_said_again_takes_none_of_the_others_back(runs, search, capsys):
    Record.create(runs, "two", replace(search, set={"width": 4, "dropout": 0.0}))
    again = ["search", "two", "--runs", str(runs)]
    with pytest.raises(RayStartedError):
        main([*again, "--set", "width=4"])
    assert Record(runs, "two").search.set == {"width": 4, "dropout": 0.0}
    code, _, err = hpo_says(*again, "--set", "width=8", capsys=capsys)
    assert code == 2
    assert "set: it has {'width': 4, 'dropout': 0.0}, not {'width': 8, 'dropout': 0.0}" in err


def test_a_folder_that_was_renamed_is_the_same_search_by_its_new_name(done, runs, capsys):
    before = [trial.params for trial in done.trials()]
    done.folder.rename(runs / "renamed")
    again = Record(runs, "renamed")
    assert (again.id, [trial.params for trial in again.trials()]) == (done.id, before)
    assert Record(runs, "renamed", read_only=True).trials()
    assert hpo_says("search", "renamed", "--runs", str(runs), "--trials", "0", capsys=capsys)[2].count("\n") == 1
    again.set_metadata("x", 1)
    assert Record(runs, "renamed").metadata()["x"] == 1


def test_a_searchs_folder_in_the_place_of_its_name_or_of_its_export_is_told_as_that(done, runs, capsys, monkeypatch):
    monkeypatch.chdir(runs.parent)
    for command, typed in (("show", "runs/first/"), ("search", "./runs/first"), ("export", "runs/first")):
        code, _, err = hpo_says(command, typed, capsys=capsys)
        assert (code, "is the folder of a search; give its name alone, first\n" in err) == (2, True), err
    runs.rename(runs.with_name("others"))
    assert "first, and --runs others\n" in hpo_says("show", "others/first", capsys=capsys)[2]
    assert "not an export" in hpo_says("evaluate", "others/first", capsys=capsys)[2]
    (runs.with_name("others") / "first" / "export").mkdir()
    (runs.with_name("others") / "first" / "export" / "manifest.json").touch()
    code, _, err = hpo_says("evaluate", "others/first", capsys=capsys)
    assert (code, "did you mean others/first/export?" in err) == (2, True)


def test_a_name_like_anothers_begins_no_search_of_defaults(done, runs, capsys):
    code, _, err = hpo_says("search", "frist", "--runs", str(runs), capsys=capsys)
    assert (code, "there is first, which `hpo search first` continues" in err) == (2, True)
    assert sorted(path.name for path in runs.iterdir()) == ["first"]
    for words in (["frist", "--trials", "3"], ["other"]):  # meant so
        with pytest.raises(RayStartedError):
            main(["search", *words, "--runs", str(runs)])


def test_a_tilde_that_no_shell_has_expanded_is_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HPO_STORAGE", "~/searches")
    words = ["search", "x", "--runs=~/runs", "--data=~", "--space=~/s.py", "--pruner=~/p.py"]
    found = arguments.parser().parse_args(words)
    assert (found.runs, found.storage) == (tmp_path / "runs", f"{tmp_path}/searches")
    options = read_search_options(found, ErrorCollector())
    assert options == {"data": str(tmp_path), "space": f"{tmp_path}/s.py", "pruner": f"{tmp_path}/p.py"}
    assert arguments.parser().parse_args(["list", "--storage", "s3://b/~"]).storage == "s3://b/~"


def test_a_search_is_not_continued_on_other_images(tmp_path, capsys):
    for name in ("coffee", "chelsea", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()[:48, :48]).save(tmp_path / f"{name}.png")
    search = SearchConfig(data=str(tmp_path), crop=16, set={"batch_size": 8})
    record = Record.create(tmp_path / "runs", "first", search)
    record.set_metadata(IMAGES, search.data_config().load().digest)
    command = ["search", "first", "--runs", str(tmp_path / "runs"), "--trials", "3"]
    with pytest.raises(RayStartedError):  # with the same images
        main(command)
    for name in ("coffee", "chelsea", "rocket"):
        pixels = np.array(Image.open(tmp_path / f"{name}.png"))
        Image.fromarray(255 - pixels).save(tmp_path / f"{name}.png")
    code, _, err = hpo_says(*command, capsys=capsys)
    assert code == 2
    assert f"first: its trials saw other images than {tmp_path} has now" in err


def test_a_study_that_another_process_holds_is_a_fault_of_the_machine(record, capsys, monkeypatch):
    monkeypatch.setattr(hpo.store.study_database, "_LOCKED_SECONDS", 0)
    with sqlite3.connect(record.folder / "study.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        code, _, err = hpo_says("show", "first", capsys=capsys)
    assert code == 4
    assert "locked" in err


def test_a_training_by_hand_goes_on_where_it_was(capsys):
    command = ["train", "--to", "out", "--json", "--images-per-epoch", "256", "--set", "width=2", "--set", "dropout=0"]
    code, _, err = hpo_says(*command, "--epochs", "1", capsys=capsys)
    assert code == 0
    assert err.endswith(f"images/s on {'cuda' if torch.cuda.is_available() else 'cpu'}\n")  # never silently
    code, out, err = hpo_says(*command, "--epochs", "1", "--tensorboard", capsys=capsys)  # done already
    assert (code, err) == (0, "")
    (epoch,) = json.loads(out)["epochs"]
    assert epoch["epoch"] == 1
    assert {"ssim", "psnr_db", "l1", "images_per_second"} <= epoch.keys()
    assert curves_in(Path("out/tensorboard"))["val/psnr"] == [(1, pytest.approx(epoch["psnr_db"]))]
    left = {"best.safetensors", "last.safetensors", "epoch-0001.png", "tensorboard"}
    assert {path.name for path in Path("out").iterdir()} == left


def test_a_training_by_hand_is_exported_when_asked_and_says_what_the_export_measures(tmp_path, capsys):
    for name in ("coffee", "chelsea", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()[:48, :48]).save(tmp_path / f"{name}.png")
    sizes = ["--data", str(tmp_path), "--crop", "16", "--epochs", "1", "--images-per-epoch", "8"]
    command = ["train", "--to", "out", *sizes, "--set", "width=2", "--set", "batch_size=8", "--export", "--json"]
    code, out, _ = hpo_says(*command, capsys=capsys)
    manifest = read_manifest(Path("out/export"))
    assert code == 0
    assert json.loads(out)["export"] == manifest["metrics"]
    assert manifest["metrics"]["test"] is not None
    assert manifest["origin"] == {"training": "out", "epoch": 1}


# --- whatever is typed -----------------------------------------------------------------------------------------------

ODD = [
    "-1",
    "0",
    "1",
    "3",
    "nan",
    "inf",
    "1e400",
    "9" * 5000,
    "\u0663",
    "",
    "x" * 5000,
    "\x1b[2J",
    "a\nb",
    "\udcff",
    "1.5",
    "-",
]
TYPED = (
    st.sampled_from(ODD)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.text(st.characters(exclude_characters="\0"))
)
DATABASES = [
    "postgresql://127.0.0.1:1/x?connect_timeout=1",
    "postgresql://a:b@c/d",
    "postgresql://[1.]/d",
    "sqlite:///x",
]
# What would ask other machines, or run as a command, is chosen from a few.
GIVEN = {
    "--on-finish": st.sampled_from(["", "true"]),
    "--study-url": st.sampled_from(DATABASES),
    "--wandb": st.sampled_from(["offline", "disabled", "onlin"]),
    "--address": st.sampled_from(["local", "", "\x1b"]),
    "--storage": st.sampled_from(["", "s3://", "s3://[", "gs://a", "a.png", "a.png/b", "x" * 5000, "\x1b[2J", "shelf"]),
    "--data": st.sampled_from(["fashion-mnist", "s3://", "s3://a@b/c", "s3://[", "a.png", "x" * 5000]) | TYPED,
    "--space": st.sampled_from(["losses_and_rates", "optimizers", "a.png", "x" * 5000 + ".py", "\x1b.py"]) | TYPED,
    "--noise": st.sampled_from(["gaussian:30", "poisson:9" * 30, "jpeg:0"]) | TYPED,
    "--set": st.builds("{}={}".format, st.sampled_from(FIELDS) | TYPED, TYPED) | TYPED,
}
COMMANDS = {action.metavar or action.dest: action for action in arguments.parser()._actions}["COMMAND"].choices


@st.composite
def typed(draw: st.DrawFn) -> list[str]:
    """A command with some of its options and any values for them."""
    name = draw(st.sampled_from(sorted(COMMANDS.keys() - {"stop", "rm"})))
    words = [name]
    for action in COMMANDS[name]._actions:
        values = GIVEN.get((action.option_strings or [""])[0], TYPED)
        if not action.option_strings:
            words.append(draw(st.sampled_from(["first", "model", "a.png", "check"]) | values))
        elif action.dest != "help" and (action.required or draw(st.integers(0, 14)) == 0):
            words += [action.option_strings[0]] if action.nargs == 0 else [action.option_strings[0], draw(values)]
    return words


class StartedError(Exception):
    """What was asked is right, and begins."""


@given(words=typed() | st.lists(TYPED | st.sampled_from(sorted(COMMANDS)), max_size=4))
@example(words=["search", "first", "--runs", "x" * 5000])
@example(words=["search", "first", "--space", "x" * 5000 + ".py"])
@example(words=["search", "first", "--data", "x" * 5000])
@example(words=["search", "first", "--set", "blocks=1000000000"])
@example(words=["search", "first", "--seed", "9" * 50])
@example(words=["search", "first", "--trials", "9" * 50])
@example(words=["search", "first", "--study-url", "postgresql://[1.]/d"])
@example(words=["search", "first", "--storage", "a.png"])
@example(words=["sync", "9" * 5000])
@example(words=["show", "\x1b[2J"])
@example(words=["dashboard", "first", "--port", "99999"])
def test_whatever_is_typed_begins_or_is_refused_in_lines_with_nothing_written(words, images_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed")
    Image.new("L", (8, 8)).save(folder / "a.png")
    before = sorted(folder.rglob("*"))
    with chdir(folder), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as err:
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
        except StartedError:
            return
    told = err.getvalue().splitlines()
    assert code in (0, 2), told
    assert all(line.isprintable() and len(line) <= 2100 for line in told)
    assert sorted(folder.rglob("*")) == before


@pytest.fixture(scope="module")
def images_once() -> Iterator[None]:
    """Read once; no training, and no Ray."""

    def begin(*_: object, **__: object) -> None:
        raise StartedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.data.data_config, "fashion_mnist", functools.cache(fashion_mnist))
        patch.setattr(model.training_run.TrainingRun, "__init__", begin)
        patch.setattr(ray_session, "RaySession", begin)
        patch.setattr(model.data.image_sets.Images, "digest", "0")
        yield
