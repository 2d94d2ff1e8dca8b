"""What was damaged on disk is told and never taken for whole: checkpoints, the study, the images."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import shutil
import sqlite3
from pathlib import Path

import plain_search
import pytest
from curves import controller, essence, run_all, story, train
from killed import killed_while_writing
from plain_search import EPOCHS, assert_best_checkpoints_are_as_recorded, command

from hpo.cli.commands import main
from hpo.policy import leaderboard
from hpo.policy.search_config import SearchConfig
from hpo.run import finalists
from hpo.run.context import SearchContext
from hpo.store import file_names, search_results
from hpo.store.file_names import STUDY_FILE
from hpo.store.object_storage import Storage
from hpo.store.record import Record
from hpo.store.search_file import RecordError
from hpo.store.study_replication import acquire
from model.common.errors import MachineError
from model.data import fashion_mnist
from model.denoise import Denoiser
from model.training_files import BEST, LAST


def flipped(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def middle_flipped(path: Path) -> None:
    flipped(path, 4 * path.stat().st_size)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize(
    ("which", "damage"), [({LAST}, middle_flipped), ({LAST, BEST}, middle_flipped), ({LAST, BEST}, cut)]
)
def test_a_trial_whose_last_checkpoint_is_damaged_trains_again_and_says_so(  # noqa: PLR0917
    which, damage, pictures, searched_plainly, tmp_path, monkeypatch, caplog
):
    """From the best, or from its beginning: and ends as the undisturbed one."""
    run_epoch = plain_search.TrainingRun.run_epoch

    def killed(run: plain_search.TrainingRun) -> object:
        if len(run.reports) == EPOCHS - 1:
            raise MachineError("killed")
        return run_epoch(run)

    with monkeypatch.context() as patch:
        patch.setattr(plain_search.TrainingRun, "run_epoch", killed)
        assert main(command(pictures, tmp_path)) == 4
    folder = tmp_path / "first" / "trials" / "00000"
    content = (folder / LAST).read_bytes()
    for name in which:
        (folder / name).unlink()  # two names of one file
        (folder / name).write_bytes(content)
        damage(folder / name)
    with caplog.at_level(logging.WARNING):
        assert main(command(pictures, tmp_path)) == 0
    said = "trial 0: its last checkpoint was damaged or missing; it is back at epoch 1 and repeats the epochs up to 2"
    assert sum(said in message for message in caplog.messages) == (which == {LAST, BEST})
    record = Record(tmp_path, "first")
    assert essence(record.trials()) == essence(Record(searched_plainly, "first").trials())
    assert_best_checkpoints_are_as_recorded(record)


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("damage", [middle_flipped, Path.unlink])
def test_a_winner_whose_checkpoint_is_damaged_gives_way_to_the_next_best(  # noqa: PLR0917
    damage, pictures, searched_plainly, tmp_path, monkeypatch, capsys
):
    """At the search's end; `hpo show` tells why the best on the leaderboard has not won."""
    by_rank = leaderboard.candidates(Record(searched_plainly, "first").trials())
    measure = finalists.measure_finalists

    def damaged_before(context: SearchContext) -> None:
        damage(context.record.trial_folder(by_rank[0]) / BEST)
        measure(context)

    monkeypatch.setattr(finalists, "measure_finalists", damaged_before)
    assert main(command(pictures, tmp_path)) == 0
    record = Record(tmp_path, "first")
    path = record.trial_folder(by_rank[0]) / BEST
    assert re.search(
        rf"^Trial {by_rank[0]} cannot win: {path}: (damaged|checkpoint not found)", capsys.readouterr().err, re.M
    )
    assert record.metadata()[file_names.FINALISTS].keys() == set(map(str, by_rank[1:4]))
    assert search_results.winner(record) in by_rank[1:4]
    assert main(["show", "first", "--runs", str(tmp_path)]) == 0
    assert f"checkpoints damaged or missing, so these trials cannot win: {by_rank[0]}\n" in capsys.readouterr().out
    monkeypatch.setattr(finalists, "measure_finalists", measure)
    shutil.copy(searched_plainly / path.relative_to(tmp_path), path)
    assert main(command(pictures, tmp_path)) == 0
    assert record.metadata()[file_names.LOST] == []  # it was brought back
    assert search_results.winner(record) == search_results.winner(Record(searched_plainly, "first"))


@pytest.mark.usefixtures("plainly")
def test_where_no_checkpoint_is_whole_the_search_ends_with_4_and_no_export(pictures, tmp_path, monkeypatch, capsys):
    measure = finalists.measure_finalists

    def damaged_before(context: SearchContext) -> None:
        for path in context.record.folder.rglob(BEST):
            middle_flipped(path)
        measure(context)

    monkeypatch.setattr(finalists, "measure_finalists", damaged_before)
    assert main(command(pictures, tmp_path)) == 4
    assert "hpo: first: no checkpoint of its best trials is intact" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [middle_flipped, Path.unlink])
def test_an_export_of_a_damaged_checkpoint_is_refused_and_the_next_best_named(
    damage, searched_plainly, tmp_path, capsys
):
    shutil.copytree(searched_plainly, tmp_path, dirs_exist_ok=True)
    record = Record(tmp_path, "first")
    first, second, third, *_ = search_results.ranked_finalists(record)
    exported = Denoiser(record.folder / file_names.EXPORT).manifest
    damage(record.trial_folder(first) / BEST)
    export = ["export", "first", "--runs", str(tmp_path)]
    assert main(export) == 4
    assert re.search(
        rf"^hpo: {record.trial_folder(first) / BEST}: .*; the next best: --trial {second}$",
        capsys.readouterr().err,
        re.M,
    )
    middle_flipped(record.trial_folder(second) / BEST)
    assert main(export) == 4
    assert capsys.readouterr().err.endswith(f"the next best: --trial {third}\n")
    for path in record.folder.rglob(BEST):
        path.write_bytes(b"")
    assert main(export) == 4
    assert capsys.readouterr().err.endswith("no other trial has an intact one\n")
    assert Denoiser(record.folder / file_names.EXPORT).manifest == exported


# --- the study ------------------------------------------------------------------------------------------------------


def overwritten(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\xff" * 9_000 + content[len(content) // 2 + 9_000 :])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def exchanged(path: Path) -> None:
    """By another search's of the same name."""
    other = Record.create(path.parent.parent / "elsewhere", path.parent.name, SearchConfig())
    other.study_file.replace(path)
    shutil.rmtree(other.folder.parent)


def of_another_name(path: Path) -> None:
    other = Record.create(path.parent.parent / "elsewhere", "second", SearchConfig())
    other.study_file.replace(path)
    shutil.rmtree(other.folder.parent)


def without_tables(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE something_else (x)")


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("damage", [cut, overwritten, emptied, Path.unlink, exchanged, of_another_name, without_tables])
def test_a_search_with_a_damaged_study_is_an_error_and_nothing_is_overwritten(
    damage, pictures, searched_plainly, tmp_path, capsys
):
    shutil.copytree(searched_plainly, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "first" / STUDY_FILE)
    before = contents(tmp_path)
    for each in (
        command(pictures, tmp_path),
        command(pictures, tmp_path, "--trials", "9"),
        ["show", "first", "--runs", str(tmp_path)],
    ):
        assert main(each) == 4
        said = capsys.readouterr().err
        assert re.fullmatch(rf"hpo: {tmp_path}/first/study.db: .*put a copy of it in its place.*\n", said), said
    assert contents(tmp_path) == before


def test_every_lost_page_of_a_study_is_told(done, runs):
    """Those too that nothing reads, as of tables that we leave empty: who writes would get into them."""
    whole = done.study_file.read_bytes()
    for at in range(0, len(whole), 4096):
        done.study_file.write_bytes(whole[:at] + bytes(4096) + whole[at + 4096 :])
        with pytest.raises(RecordError, match=rf"{done.study_file}: damaged"):
            Record(runs, "first")


def test_whatever_is_damaged_in_a_study_is_told_or_changes_nothing_that_was_decided(done, runs):
    """A bit here, a stretch there: an error in one line, or the same trials, parameters, reports and ends."""
    whole, rng = done.study_file.read_bytes(), random.Random(1)
    expected = [(t.number, t.state, t.intermediate_values, t.values) for t in done.trials()]
    for _ in range(30):
        content = bytearray(whole)
        at = rng.randrange(len(content))
        for place in range(at, min(len(content), at + rng.choice([1, 1, 200]))):
            content[place] ^= 1 << rng.randrange(8)
        done.study_file.write_bytes(content)
        with contextlib.suppress(RecordError):
            found = Record(runs, "first").trials()
            assert [(t.number, t.state, t.intermediate_values, t.values) for t in found] == expected


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            "UPDATE trial_intermediate_values SET intermediate_value = intermediate_value + 1e-3 WHERE rowid = 3",
            "values",
        ),
        ("DELETE FROM trial_values WHERE rowid = 1", "decision"),
        ("DELETE FROM trial_user_attributes WHERE key = 'decision' AND trial_id = 1", "decision"),
    ],
)
def test_what_was_written_twice_and_does_not_agree_is_told(change, what, done, runs):
    """As a flipped bit leaves it: SQLite takes it for whole."""
    with sqlite3.connect(done.study_file) as study:
        assert study.execute(change).rowcount == 1
    with pytest.raises(RecordError, match=rf"damaged \(trial \d+: its {what}\)"):
        Record(runs, "first")


def test_a_journal_that_a_killed_driver_left_is_played_back_and_garbage_in_its_place_is_not(done, runs):
    journal = killed_while_writing(done.study_file)
    half = done.study_file.read_bytes()
    assert story(Record(runs, "first").trials()) == story(done.trials())
    assert not journal.exists()
    whole = done.study_file.read_bytes()
    assert half != whole
    journal.write_bytes(os.urandom(9_000))
    assert story(Record(runs, "first").trials()) == story(done.trials())
    done.study_file.write_bytes(half)  # and its journal deleted
    with pytest.raises(RecordError, match="damaged"):
        Record(runs, "first")


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_with_a_storage_the_last_good_copy_takes_the_place_of_a_damaged_study(  # noqa: PLR0917
    damage, runs, search, undisturbed, tmp_path, caplog
):
    """And what is younger than the copy is decided again."""
    Record.create(runs, "first", search)
    (tmp_path / "storage").mkdir()
    storage, checkpoints = Storage(str(tmp_path / "storage")), {}

    def fail(error: Exception) -> None:
        raise AssertionError(error)

    with acquire(runs, "first", storage, fail) as replicator:
        replicator.start()
        loop = controller(replicator.record, replicator)
        for _ in range(3):
            number = loop.next_trial().number
            train(loop, number, checkpoints.setdefault(number, []))
        replicator.stop()
    damage(runs / "first" / STUDY_FILE)
    with caplog.at_level(logging.WARNING), acquire(runs, "first", storage, fail) as replicator:
        replicator.start()
        assert len(replicator.record.trials()) == 3
        run_all(controller(replicator.record, replicator), checkpoints)
        replicator.stop()
        assert story(replicator.record.trials()) == story(undisturbed.trials())
    assert f"{storage.subdirectory('first')} has the last good copy" in caplog.text
    assert (runs / "first" / f"{STUDY_FILE}.damaged").exists() == (damage is not Path.unlink)


# --- the images -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(("verb", "split"), [("search", "train"), ("search", "test"), ("train", "test")])
def test_damaged_images_are_named_before_anything_starts(verb, split, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fashion_mnist._cache().mkdir(parents=True)
    for file in fashion_mnist._FILES.values():
        where = next(
            folder / file.name
            for folder in (fashion_mnist._DEBIAN, fashion_mnist._cache())
            if (folder / file.name).exists()
        )
        shutil.copy(where, fashion_mnist._cache())
    middle_flipped(damaged := fashion_mnist._cache() / fashion_mnist._FILES[split].name)
    told = (
        ["search", "first", "--runs", str(tmp_path / "runs")]
        if verb == "search"
        else ["train", "--to", str(tmp_path / "runs")]
    )
    assert main(told) == 2
    assert re.match(rf"hpo: {damaged}: damaged", capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()
