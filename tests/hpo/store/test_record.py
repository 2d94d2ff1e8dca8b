"""The record of a search: no kill leaves a half of anything, one writer, and Optuna sees the truth."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from threading import Thread

import optuna
import pytest
import sqlalchemy
from curves import SPACE, append_report, controller, learned, report, run_all, story, train
from fuzzing import SCALARS, assert_readable, fewer, json_near
from hypothesis import given
from hypothesis import strategies as st
from killed import Killed, killed_at_write
from optuna.trial import FrozenTrial, TrialState

from hpo.cli.commands import main
from hpo.policy.search_config import SearchConfig
from hpo.policy.suggestions import suggest
from hpo.policy.trial_attributes import (
    CONFIG,
    DECISION,
    ERROR,
    REPORT_INDEX,
    REPORTS,
    REPORTS_AT_SUGGESTION,
    SUGGESTED_BY,
)
from hpo.store.lock import acquire_lock
from hpo.store.record import Record
from hpo.store.search_file import RecordError
from model.common.errors import ConfigError, MachineError
from model.config import TrainConfig
from model.training_report import EvalReport


def as_optuna_sees_it(runs: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="first", storage=f"sqlite:///{runs / 'first' / 'study.db'}").trials


def with_trials(record: Record, count: int) -> Record:
    for _ in range(count):
        record.add(suggest(record.trials(), SPACE, record.search))
    return record


def test_a_trial_is_added_whole_or_not_at_all(record, runs, search):
    suggestion = suggest([], SPACE, search)
    for writes in itertools.count():
        try:
            with killed_at_write(writes):
                Record(runs, "first").add(suggestion)
            break
        except Killed:
            assert as_optuna_sees_it(runs) == []
    assert writes >= 8  # the trial, four parameters, four attributes
    (trial,) = as_optuna_sees_it(runs)
    assert (trial.state, trial.params, trial.distributions) == (
        TrialState.RUNNING,
        suggestion.params,
        suggestion.distributions,
    )
    assert trial.user_attrs == {
        CONFIG: suggestion.config.as_dict(),
        SUGGESTED_BY: "starting point",
        REPORTS_AT_SUGGESTION: 0,
        REPORTS: [],
    }


def test_a_report_keeps_everything_and_when_it_was_heard(record):
    with_trials(record, 2)
    for number, epoch in ((0, 1), (1, 1), (1, 2), (0, 2)):
        append_report(record, number, report(epoch, 0.5, gen_total=math.inf))
    heard = [[entry[REPORT_INDEX] for entry in trial.user_attrs[REPORTS]] for trial in record.trials()]
    assert heard == [[0, 3], [1, 2]]
    assert EvalReport.from_dict(record.trial(0).user_attrs[REPORTS][1]) == report(2, 0.5, gen_total=math.inf)


def test_a_hole_between_reports_is_refused(record):
    with_trials(record, 1)
    append_report(record, 0, report(1, 0.5))
    with pytest.raises(RecordError, match="trial 0: report 3 came after report 1"):
        append_report(record, 0, report(3, 0.5))


def test_a_driver_that_dies_while_it_makes_a_search_leaves_none(runs, search, monkeypatch):
    def die(*_: object) -> None:
        raise Killed

    for step in ("Study.create", "write_atomically"):
        with monkeypatch.context() as patch:
            patch.setattr(f"hpo.store.record.{step}", die)
            with pytest.raises(Killed):
                Record.create(runs, "first", search)
        assert not Record.exists(runs, "first")
    assert Record.create(runs, "first", search).trials() == []


@pytest.mark.parametrize("ssim", [0.5, math.nan])
def test_a_report_is_written_with_what_becomes_of_its_trial_or_not_at_all(record, runs, ssim):
    with_trials(record, 1)
    (before,) = as_optuna_sees_it(runs)
    for writes in itertools.count():
        try:
            with killed_at_write(writes):
                append_report(Record(runs, "first"), 0, report(1, ssim))
            break
        except Killed:
            assert as_optuna_sees_it(runs) == [before]
    ends = math.isnan(ssim)
    assert writes == (5 if ends else 2)  # reports, value; decision, state, final value
    (trial,) = as_optuna_sees_it(runs)
    assert (trial.state, trial.value) == ((TrialState.PRUNED, -1.0) if ends else (TrialState.RUNNING, None))
    assert (DECISION in trial.user_attrs) == ends


def test_optuna_reads_all_that_was_written(done, runs):
    """Each field of each trial, times and the order of parameters included."""
    with_trials(done, 2)
    done.add_failure(8, "its node is gone")
    done.add_failure(8, "its node is gone again")
    done.fail(9, "out of memory")
    assert as_optuna_sees_it(runs) == done.trials()
    assert [list(trial.params) for trial in as_optuna_sees_it(runs)] == [list(trial.params) for trial in done.trials()]


def test_optuna_sees_how_each_trial_really_ended(done, runs):
    with_trials(done, 1)
    done.fail(8, "its node is gone")
    *trials, failed = as_optuna_sees_it(runs)
    assert failed.state == TrialState.FAIL
    reasons = {TrialState.COMPLETE: set(), TrialState.PRUNED: set()}
    for trial in trials:
        reports = [learned(TrainConfig.from_dict(trial.user_attrs[CONFIG]), e) for e in trial.intermediate_values]
        assert list(trial.intermediate_values) == list(range(1, trial.last_step + 1))
        values = [r.ssim if math.isfinite(r.ssim) else -1.0 for r in reports]
        assert list(trial.intermediate_values.values()) == values
        assert trial.value == values[-1]
        reasons[trial.state].add(trial.user_attrs["decision"]["reason"])
    assert reasons == {TrialState.COMPLETE: {"finished"}, TrialState.PRUNED: {"asha", "diverged"}}


def test_who_reads_while_another_writes_sees_whole_events(record, runs):
    """In several statements: trials, then their attributes, then their values."""
    with_trials(record, 1)
    reader, writing = Record(runs, "first"), Thread(target=lambda: append_report(record, 0, report(1, 0.5)))

    def after_execute(connection: sqlalchemy.Connection, _cursor: object, sql: str, *_: object) -> None:
        if connection.engine is reader._study._storage.engine and "trial" in sql and writing.ident is None:
            writing.start()
            writing.join(1)

    sqlalchemy.event.listen(sqlalchemy.Engine, "after_cursor_execute", after_execute)
    try:
        reader.refresh()
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "after_cursor_execute", after_execute)
        writing.join()
    assert reader.trials()[0].intermediate_values == {}
    reader.refresh()
    assert reader.trials() == record.trials()
    assert len(reader.trials()[0].intermediate_values) == 1


def test_of_two_that_begin_a_search_at_once_the_later_changes_nothing(record, runs, search):
    """Both have looked, and have found none."""
    before = {path.name: path.read_bytes() for path in record.folder.iterdir() if path.name != "lock"}
    with pytest.raises(ConfigError, match="first: another driver has just begun it"):
        Record.create(runs, "first", replace(search, trials=3))
    with (
        closing(acquire_lock(record.folder, "first")),
        pytest.raises(ConfigError, match=f"run by process {os.getpid()}"),
    ):
        Record.create(runs, "first", replace(search, trials=3))
    assert {path.name: path.read_bytes() for path in record.folder.iterdir() if path.name != "lock"} == before


def test_what_decides_the_comparison_cannot_change(record, search):
    with pytest.raises(ConfigError) as refused:
        record.update_config({"seed": 4, "epochs": 6, "trials": 20})
    assert "seed: it has 9, not 4" in str(refused.value)
    assert "epochs: it has 4, not 6" in str(refused.value)
    assert "trials" not in str(refused.value).partition("\n")[2].rpartition("\n")[0]
    assert record.search == search


def test_how_much_and_where_may_change(record, runs):
    record.update_config({"trials": 20, "time_budget_minutes": 2.0, "final_epochs": 3, "max_concurrent": 1, "seed": 9})
    kept = Record(runs, "first").search
    assert (kept.trials, kept.time_budget_minutes, kept.final_epochs, kept.max_concurrent) == (20, 2.0, 3, 1)
    with pytest.raises(ConfigError, match="trials=0"):
        record.update_config({"trials": 0})


def test_the_lock_names_its_holder_and_dies_with_it(record, runs, capsys):
    code = (
        "import sys, time; from pathlib import Path; from hpo.store.lock import acquire_lock\n"
        "lock = acquire_lock(Path(sys.argv[1]) / 'first', 'first'); print('locked', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(runs)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match=f"first: is being run by process {holder.pid} on {socket.gethostname()}"):
            acquire_lock(record.folder, "first")
        assert main(["search", "first", "--runs", str(runs)]) == 2
        assert str(holder.pid) in capsys.readouterr().err
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    lock = acquire_lock(record.folder, "first")
    assert (runs / "first" / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    lock.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t[:-20],
        lambda _: "",
        lambda _: "[]",
        lambda t: t.replace("id", "di"),
        lambda t: t.replace('"distributions": {', '"distributions": {"x": "text",'),
        lambda t: t.replace('"trials": 8', '"trials": -8'),
        lambda t: t.replace('"trials"', '"trails"'),
    ],
)
def test_a_damaged_search_file_is_an_error_and_never_a_new_search(record, runs, capsys, damage):
    path = runs / "first" / "search.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(RecordError, match=r"search\.json: damaged"):
        Record(runs, "first")
    assert main(["show", "first", "--runs", str(runs)]) == 4
    assert "search.json: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["overwritten", "cut", "deleted"])
def test_a_damaged_study_is_an_error_and_never_a_new_search(done, runs, capsys, damage):
    path = runs / "first" / "study.db"
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(content[:3000] if damage == "cut" else content[:40] + b"\xff" * 30_000 + content[30_040:])
    assert main(["show", "first", "--runs", str(runs)]) == 4
    assert "study.db" in capsys.readouterr().err


def test_a_name_that_is_not_there_is_told_with_the_nearest(record, runs):
    with pytest.raises(ConfigError, match=r"frist: no such search in .*Did you mean first\?"):
        Record(runs, "frist")
    with pytest.raises(ConfigError, match="There are none yet"):
        Record(runs / "elsewhere", "first")
    with pytest.raises(ConfigError, match="trial=14: first has the trials 0 to 0"):
        with_trials(record, 1).trial(14)


def test_a_folder_that_cannot_be_made_is_told_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="first: lies inside a file; name another with --runs"):
        Record.create(tmp_path / "file", "first", SearchConfig())


def test_the_search_file_says_what_was_asked_and_with_what_it_was_made(record, runs, search):
    about = json.loads((runs / "first" / "search.json").read_text())
    assert SearchConfig(**about["search"]) == search
    assert about["versions"]["optuna"] == optuna.__version__
    assert about["id"] == Record(runs, "first").id != Record.create(runs, "second", search).id


# --- whatever is in its files ----------------------------------------------------------------------------------------


@contextmanager
def copy_of(record: Record) -> Iterator[Path]:
    """The folder of searches with a copy of it, which must be left as it was found in the `with`."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(record.folder, Path(folder) / "first")
        yield Path(folder)


def exit_codes(runs: Path) -> set[int]:
    """Of all that only looks; what it says is printable, and nothing is written."""
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    codes = set()
    for command in (["show", "first"], ["show", "first", "--decisions", "--json"], ["list"]):
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as told:
            codes.add(main([*command, "--runs", str(runs)]))
        assert all(line.isprintable() for line in told.getvalue().splitlines())
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before
    return codes


@given(data=st.data())
@fewer(2)
def test_any_search_file_is_a_search_or_told_as_damaged(undisturbed, data):
    content = data.draw(json_near(undisturbed.about), "search.json")
    with copy_of(undisturbed) as runs:
        (runs / "first" / "search.json").write_bytes(content)
        try:
            record = Record(runs, "first")
        except RecordError as error:
            assert_readable(error, "search.json: damaged")
            return
        except ConfigError as error:  # it says of its study that it is in a database
            assert json.loads(content)["search"]["study_url"]
            assert_readable(error)
            return
        assert len(record.trials()) == 8
        assert record.id == json.loads(content)["id"]
        try:
            record.update_config({"trials": 9})
        except ConfigError as error:
            assert_readable(error)


ROWS = {
    "trial_user_attributes": ["key", "value_json", "trial_id"],
    "trial_intermediate_values": ["step", "intermediate_value", "intermediate_value_type", "trial_id"],
    "trial_values": ["value", "value_type", "objective"],
    "trial_params": ["param_name", "param_value", "distribution_json"],
    "trials": ["number", "state", "datetime_start", "datetime_complete", "study_id"],
    "study_user_attributes": ["key", "value_json"],
    "studies": ["study_name"],
    "study_directions": ["direction"],
    "version_info": ["schema_version"],
    "alembic_version": ["version_num"],
}
NUMBERS = {"value": 0.5, "ssim": 0.5, "psnr_db": 20.0}
NOTES = {
    key: json.dumps(value)
    for key, value in {"finalists": {"3": NUMBERS, "5": NUMBERS}, "final": {"trial": 5, **NUMBERS}, "cost": 1.5}.items()
}


@given(data=st.data())
@fewer(6)
def test_a_study_with_any_row_exchanged_is_shown_or_told_as_damaged(undisturbed, data):
    table = data.draw(st.sampled_from(sorted(ROWS)), "table")
    column = data.draw(st.sampled_from(ROWS[table]), "column")
    with copy_of(undisturbed) as runs, closing(sqlite3.connect(runs / "first" / "study.db")) as study:
        for key, value in NOTES.items():
            study.execute(
                "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, ?, ?)",
                (key, json.dumps(value)),
            )
        rows = study.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
        row, was = data.draw(st.sampled_from(rows), "row")
        if column.endswith("_json"):
            value = data.draw(json_near(json.loads(was)).map(lambda b: b.decode(errors="replace")))
        else:
            value = data.draw(SCALARS.filter(lambda v: not isinstance(v, int) or abs(v) < 2**63), "value")
            value = value.encode(errors="replace").decode() if isinstance(value, str) else value
        try:
            study.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, row))
        except sqlite3.IntegrityError:
            return
        study.commit()
        study.close()
        assert exit_codes(runs) <= {0, 4}


HOLDS = (
    "import sqlite3, sys, time; study = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    "study.execute('BEGIN EXCLUSIVE'); print('held', flush=True); time.sleep(float(sys.argv[2]))"
)


@contextmanager
def held(study: Path, seconds: float) -> Iterator[None]:
    """By another process."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, study, str(seconds)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        yield
        other.kill()


def test_a_study_that_another_process_holds_is_waited_for_and_nothing_is_lost(record, runs, undisturbed):
    """Half a second longer than SQLite waits by itself."""
    loop, began = controller(record), time.monotonic()
    first = loop.next_trial()
    with held(record.study_file, seconds=5.5):
        train(loop, first.number, [])
        assert time.monotonic() - began > 5
    run_all(loop)
    assert story(Record(runs, "first").trials()) == story(undisturbed.trials())


def test_a_study_that_is_held_for_too_long_ends_the_search_which_then_goes_on(record, runs, undisturbed, monkeypatch):
    """What could not be told is in the checkpoint."""
    monkeypatch.setattr("hpo.store.study_database._LOCKED_SECONDS", 0.2)
    loop, checkpoints = controller(Record(runs, "first")), {0: []}
    number = loop.next_trial().number
    told = pytest.raises(RecordError, match=r"study\.db: held by another process \(database is locked\)")
    with held(record.study_file, seconds=60), told:
        train(loop, number, checkpoints[number])
    assert len(checkpoints[number]) == 1
    run_all(controller(Record(runs, "first")), checkpoints)
    assert story(Record(runs, "first").trials()) == story(undisturbed.trials())


PRINTABLE = "".join(sorted({chr(code) for code in range(1, 127)} - {"/"}))


@pytest.mark.parametrize("folder", ["a%20b", "a?b", "a{b}", "a#b=c&d;e", "ü 日本\udcff", PRINTABLE], ids=ascii)
def test_a_study_lies_in_its_folder_whatever_characters_the_path_has(folder, tmp_path):
    """One that the path's name means in a URL keeps its own."""
    others = Record.create(tmp_path / "a b" / "runs", "first", SearchConfig(trials=2, epochs=2))
    before = others.study_file.read_bytes()
    Record.create(tmp_path / folder / "runs", "first", SearchConfig(trials=2, epochs=2))
    for read_only in (False, True):
        assert with_trials(Record(tmp_path / folder / "runs", "first", read_only=read_only), 0).trials() == []
    with_trials(Record(tmp_path / folder / "runs", "first"), 1)
    assert others.study_file.read_bytes() == before
    with closing(sqlite3.connect(tmp_path / folder / "runs" / "first" / "study.db")) as study:
        assert study.execute("SELECT COUNT(*) FROM trials").fetchone() == (1,)
    assert sorted(os.listdir(tmp_path)) == sorted(["a b", folder])


# --- what Optuna's tools add -----------------------------------------------------------------------------------------


def optunas(record: Record) -> optuna.Study:
    return optuna.load_study(study_name="first", storage=f"sqlite:///{record.study_file}")


def test_a_trial_that_optuna_enqueues_is_run_next_and_the_sampler_suggests_what_it_leaves_open(record, runs):
    loop = controller(record)
    train(loop, loop.next_trial().number, [])
    optunas(record).enqueue_trial({"lr_g": 5e-4}, user_attrs={"why": "a guess"})
    train(loop, loop.next_trial().number, [])
    run_all(loop)
    read = Record(runs, "first").trials()
    assert story(read) == story(record.trials())
    assert (read[1].params["lr_g"], read[1].user_attrs[SUGGESTED_BY], read[1].user_attrs["why"]) == (
        5e-4,
        "queued",
        "a guess",
    )
    assert {"loss", "lr_d"} <= read[1].params.keys()
    assert [trial.number for trial in read] == [*range(record.search.trials)]
    assert as_optuna_sees_it(runs)[1].params == read[1].params


def test_what_waits_in_the_study_is_no_damage_and_waits_until_there_is_a_trial_left(record, runs):
    run_all(controller(record))
    done = story(record.trials())
    optunas(record).enqueue_trial({"lr_g": 5e-4})
    found = Record(runs, "first")
    assert story(found.trials()) == done
    assert controller(found).next_trial() is None
    found.update_config({"trials": record.search.trials + 1})
    assert controller(found).next_trial().user_attrs[SUGGESTED_BY] == "queued"


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"lr_g": 0.05}, "The value 0.05 of parameter 'lr_g' isn't contained"),
        ({"lr_g": 5.0}, "lr_g must be above 0 and at most 1"),
        ({"lr_gg": 1e-4}, "lr_gg: the space suggests no such parameter. Did you mean lr_g?"),
        ({"loss": "l7"}, "l7"),
    ],
)
def test_what_is_queued_and_not_in_the_space_fails_by_itself_and_the_search_goes_on(params, told, record, runs):
    optunas(record).enqueue_trial(params)
    run_all(controller(record))
    first, *others = Record(runs, "first").trials()
    assert (first.state, len(others)) == (TrialState.FAIL, record.search.trials - 1)
    assert told in first.user_attrs[ERROR]["text"]
    assert all(trial.state != TrialState.FAIL for trial in others)


def test_optunas_notes_and_attributes_change_nothing(record, runs):
    study = optunas(record)
    study.set_user_attr("mine", [1, 2])
    study._storage.set_study_system_attr(study._study_id, "dashboard:note_ver", 1)
    loop = controller(record)
    loop.next_trial()
    [trial] = study.trials
    study._storage.set_trial_user_attr(trial._trial_id, "tag", "good")
    study._storage.set_trial_system_attr(trial._trial_id, "dashboard:0:note_ver", 1)
    train(loop, 0, [])
    run_all(loop)
    assert len(Record(runs, "first").trials()) == record.search.trials


def test_a_trial_that_another_program_adds_this_moment_is_not_written_over(record):
    suggestion = suggest([], SPACE, record.search)
    optunas(record).enqueue_trial({"lr_g": 5e-4})
    with pytest.raises(MachineError, match="trial 0 was added by another program this moment"):
        record.add(suggestion)
