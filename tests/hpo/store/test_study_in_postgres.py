"""The study in a database: the search as in a file, whatever becomes of the server; the password is nowhere."""

from __future__ import annotations

import io
import math
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import skimage.data
import sqlalchemy
from curves import SEARCH, SPACE, append_report, controller, report, run_all, story
from drivers import GUARD_SECONDS, driver, num_reports
from killed import watched
from PIL import Image
from postgres import PASSWORD, Loss, Postgres, Wire, postgres
from rich.console import Console

from hpo.cli.commands import main
from hpo.policy.search_config import SearchConfig
from hpo.policy.suggestions import suggest
from hpo.run.search import SearchRun
from hpo.store import search_results, study_database
from hpo.store.record import Record
from hpo.store.search_file import RecordError
from hpo.views import watch
from hpo.views.dashboard import Snapshot
from model.common.errors import ConfigError, MachineError


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    pytest.importorskip("psycopg", reason="needs pip install 'psycopg[binary]'")
    with postgres() as running:
        yield running


@pytest.fixture
def url(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of an empty database."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    return server.new_database()


def create(runs: Path, url: str) -> Record:
    return Record.create(runs, "first", replace(SEARCH, study_url=url))


@contextmanager
def before_commits(call: Callable[[], None]) -> Iterator[None]:
    """Of transactions that have written something."""
    written = False

    def write(_statement: str) -> None:
        nonlocal written
        written = True

    def may_commit() -> bool:
        nonlocal written
        if written:
            written = False
            call()
        return True

    with watched(write, may_commit):
        yield


def at(number: int, call: Callable[[], None]) -> Callable[[], None]:
    """A function that calls it the so-manieth time that it is called itself."""
    calls = iter(range(number + 1))

    def count() -> None:
        if next(calls, None) == number:
            call()

    return count


def test_a_search_in_a_database_is_the_search_in_a_file(runs, url, undisturbed):
    record = create(runs, url)
    run_all(controller(record))
    assert story(record.trials()) == story(undisturbed.trials())
    assert Record(runs, "first").trials() == record.trials()
    assert not record.study_file
    assert {path.name for path in record.folder.iterdir()} == {"search.json", "lock"}
    as_optuna_sees_it = optuna.load_study(
        study_name=f"first-{record.id}",
        storage=url.replace("postgresql:", "postgresql+psycopg:"),
    )
    assert as_optuna_sees_it.trials == record.trials()


def test_two_peoples_first_do_not_meet_in_one_database(runs, url):
    mine, yours = create(runs / "mine", url), create(runs / "yours", url)
    for record in (mine, mine, yours):
        record.add(suggest(record.trials(), SPACE, SEARCH))
    mine.set_metadata("a", 1)
    assert [len(Record(runs / whose, "first").trials()) for whose in ("mine", "yours")] == [2, 1]
    assert yours.metadata() == {}


def test_a_lost_commit_is_written_again_and_one_whose_answer_was_lost_is_not(runs, url, server, undisturbed):
    """Twelve transactions lose the first, and written again the second; what is found then comes here no more."""
    losses: list[Loss] = ["answer", "commit"] * 12
    wire = Wire(server.port)

    def lose() -> None:
        wire.lose = losses.pop() if losses else None

    record = create(runs, url.replace(str(server.port), str(wire.port)))
    with before_commits(lose):
        run_all(controller(record))
    assert losses == []
    assert story(record.trials()) == story(undisturbed.trials())
    assert Record(runs, "first").trials() == record.trials()
    wire.close()


def test_what_the_server_has_not_settled_is_waited_for(runs, url, caplog):
    """A commit under way, or a transaction whose client is gone."""
    record = create(runs, url)
    with record._study._storage.engine.connect() as other:
        other.execute(study_database._ROW_LOCK, {"study": record._study._id})
        timer = threading.Timer(0.5, other.rollback)
        timer.start()
        record.add(suggest([], SPACE, SEARCH))
        timer.join()
    assert "could not obtain lock on row" in caplog.messages[0]
    assert len(Record(runs, "first").trials()) == 1


def test_a_server_that_is_restarted_in_the_middle_is_waited_for(runs, url, server, undisturbed, caplog):
    def restart() -> None:
        server.stop()
        threading.Timer(1.0, server.start).start()

    record = create(runs, url)
    with before_commits(at(9, restart)):
        run_all(controller(record))
    assert story(record.trials()) == story(undisturbed.trials())
    assert Record(runs, "first").trials() == record.trials()
    began, ended = (line.getMessage() for line in caplog.records)
    assert re.fullmatch(rf"{url}: .*; waiting, 300 s at most", began)
    assert re.fullmatch(rf"{url}: is back after \d+ s", ended)


def test_who_reads_while_another_writes_sees_whole_events(runs, url):
    writer = create(runs, url)
    writer.add(suggest([], SPACE, SEARCH))
    reader = Record(runs, "first", read_only=True)
    before = reader.trials()
    write = at(
        1, lambda: append_report(writer, 0, report(1, 0.5))
    )  # after the trials were selected, before their attributes

    def after_execute(connection: sqlalchemy.Connection, _cursor: object, sql: str, *_: object) -> None:
        if connection.engine is reader._study._storage.engine and "trial" in sql:
            write()

    sqlalchemy.event.listen(sqlalchemy.Engine, "after_cursor_execute", after_execute)
    try:
        reader.refresh()
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "after_cursor_execute", after_execute)
    assert len(writer.trials()[0].intermediate_values) == 1
    assert reader.trials() == before
    reader.refresh()
    assert reader.trials() == writer.trials()
    with pytest.raises(RecordError, match="read-only transaction"):
        reader.set_metadata("a", 1)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_dashboard_and_who_watches_outlive_an_absence(runs, url, server, caplog):
    record, shown = create(runs, url), io.StringIO()
    record.add(suggest([], SPACE, SEARCH))
    snapshot = Snapshot(Record(runs, "first", read_only=True))
    server.stop()
    snapshot._refreshed = -math.inf
    snapshot.refresh()
    assert caplog.messages[-1].startswith(f"{url}: ")
    threading.Timer(0.5, server.start).start()

    def wait(_seconds: float) -> None:
        if "trial 0: epoch 1" in shown.getvalue():
            raise KeyboardInterrupt
        append_report(record, 0, report(1, 0.5))

    with pytest.raises(KeyboardInterrupt):
        watch.watch(runs, "first", Console(file=shown), wait)
    assert caplog.messages[-1].startswith(f"{url}: is back after ")


def test_a_second_driver_is_found_out_before_it_does_harm(runs, url):
    """Two copies of a search's folder have two locks."""
    mine, theirs = create(runs, url), Record(runs, "first")
    theirs.add(suggest([], SPACE, SEARCH))
    with pytest.raises(MachineError, match="trial 0 was written by another driver"):
        mine.add(suggest([], SPACE, SEARCH))
    mine = Record(runs, "first")
    append_report(theirs, 0, report(1, 0.5))
    with pytest.raises(RecordError, match="duplicate key"):
        append_report(mine, 0, report(1, 0.6))
    assert Record(runs, "first").trials() == theirs.trials()


# --- the whole of `hpo search`, but for Ray ---------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, url, monkeypatch) -> list[str]:
    """`hpo search` with SEARCH, on a few small images, whose trials are curves."""
    for name in ("coffee", "chelsea", "rocket"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(getattr(skimage.data, name)()[:48, :48]).save(tmp_path / "images" / f"{name}.png")

    def run(driver: SearchRun, _: object) -> int:
        run_all(controller(driver.record))
        return 0

    monkeypatch.setattr(SearchRun, "search", run)
    monkeypatch.chdir(tmp_path)
    options = {"trials": "8", "epochs": "4", "reduction-factor": "3", "objective": "ssim", "seed": "9"}
    options |= {"data": "images", "crop": "16", "wandb": "disabled", "study-url": url}
    settings = ["--set", "width=4", "--set", "batch_size=2"]
    return ["search", "first", *(word for name, value in options.items() for word in (f"--{name}", value)), *settings]


def assert_no_password(folder: Path, *texts: str) -> None:
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert written
    assert not [content for content in [*written, *map(str.encode, texts)] if PASSWORD.encode() in content]


def test_gone_for_longer_it_ends_with_75_and_the_same_command_goes_on(command, server, url, monkeypatch, capsys):
    monkeypatch.setattr(study_database, "TIMEOUT_SECONDS", 0.5)
    with before_commits(at(9, server.stop)):
        code = main(command)
    stopped = capsys.readouterr().err
    assert main(["show", "first"]) == 4  # who only looks does not wait
    assert main(command) == 75  # nor does it help to begin again now
    again = capsys.readouterr().err
    server.start()
    assert code == 75
    for told in (stopped, again):
        assert re.search(rf"^{url}: .*; the search can be continued: hpo search first$", told, re.MULTILINE)
        assert "Traceback" not in told
    before = Record(Path("runs"), "first").trials()
    assert 0 < len(before) < 8

    assert main(command) == 0
    record = Record(Path("runs"), "first")
    whole = Record.create(Path("elsewhere"), "first", replace(record.search, study_url=None))
    run_all(controller(whole))
    assert story(record.trials()) == story(whole.trials())
    for verb in (["show", "first"], ["show", "first", "--decisions"], ["list"], ["report", "first"]):
        assert main(verb) == 0
    assert search_results.document(record)["search"]["study_url"] == url
    out, err = capsys.readouterr()
    assert "8/8 trials" in out
    assert_no_password(Path(), stopped, again, out, err)


def test_a_wrong_password_or_database_ends_it_before_it_begins(command, tmp_path, url, monkeypatch, capsys):
    command[command.index(url)] = f"{url}x"
    assert main(command) == 2
    command[command.index(f"{url}x")] = url
    monkeypatch.setenv("PGPASSWORD", wrong := f"not-{PASSWORD}")
    assert main(command) == 2
    (tmp_path / "pgpass").write_text(f"*:*:*:*:{wrong}")
    (tmp_path / "pgpass").chmod(0o600)
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    assert main(command) == 2
    err = capsys.readouterr().err
    assert f"study_url={url}x: " in err
    assert f'database "{url.rpartition("/")[2]}x" does not exist' in err
    assert err.count("password authentication failed for user") == 2
    assert PASSWORD not in err
    (tmp_path / "pgpass").write_text(f"*:*:*:*:{PASSWORD}")
    assert main(command) == 0


def test_a_study_that_the_database_lost_is_an_error_and_never_a_new_search(runs, url, server, capsys):
    record = create(runs, url)
    path = record.folder / "search.json"
    path.write_text(path.read_text().replace(url, server.new_database()))
    assert main(["show", "first", "--runs", str(runs)]) == 4
    assert f"has no study first-{record.id}; delete {record.folder} to start anew" in capsys.readouterr().err


# --- without a server -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    [
        f"postgresql://hpo:{PASSWORD}@localhost/hpo",
        f"postgresql://hpo:{PASSWORD}/@localhost/hpo",
        f"postgresql://hpo:?{PASSWORD}@localhost/hpo",
        f"postgresql://hpo:#{PASSWORD}@@localhost/hpo",
        f"postgresql://:{PASSWORD}@localhost/hpo",
        f"postgresql://localhost/hpo?password={PASSWORD}",
        f"postgresql://localhost/hpo?user=hpo&pass%77ord={PASSWORD}",
        f"postgresql://localhost/hpo?sslpassword={PASSWORD}",
        f"postgres://hpo:{PASSWORD}@localhost/hpo",
        f"mysql://hpo:{PASSWORD}@localhost/hpo",
        PASSWORD,
        "",
    ],
)
def test_a_password_in_the_url_is_refused_and_not_repeated(secret, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["search", "first", "--study-url", secret]) == 2
    with pytest.raises(SystemExit):
        main(["search", "first", f"--study-ur={secret}"])
    out, err = capsys.readouterr()
    assert "study_url: must be postgresql://USER@HOST/DB" in err
    assert "PGPASSWORD" in err
    assert "~/.pgpass" in err
    if "://" in secret:
        assert PASSWORD not in out + err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "good",
    [
        "postgresql://hpo@db.example.org/hpo",
        "postgresql://db:5433/hpo?sslmode=verify-full",
        "postgresql://[::1]:1/hpo",
        "postgresql:///hpo?host=/run/postgresql",
    ],
)
def test_any_other_way_to_name_a_database_is_taken(good):
    assert SearchConfig(study_url=good).study_url == good


def test_where_a_search_has_its_study_stays(record):
    with pytest.raises(ConfigError, match="study_url: it has None, not postgresql://localhost/hpo"):
        record.update_config({"study_url": "postgresql://localhost/hpo"})


def test_without_the_driver_the_command_that_installs_it_is_named(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'psycopg[binary]'")):
        Record.create(runs, "first", SearchConfig(study_url="postgresql://127.0.0.1:1/hpo"))


def test_a_server_that_is_not_there_is_told_at_once(runs):
    pytest.importorskip("psycopg")
    with pytest.raises(ConfigError, match=r"study_url=postgresql://127\.0\.0\.1:1/hpo: .*refused"):
        Record.create(runs, "first", SearchConfig(study_url="postgresql://127.0.0.1:1/hpo"))


# --- with Ray ---------------------------------------------------------------------------------------------------------

OPTIONS = ["--trials", "4", "--epochs", "3", "--images-per-epoch", "256", "--pruner", "none", "--max-concurrent", "2"]
OPTIONS += ["--set", "width=4", "--set", "dropout=0", "--set", "batch_size=16"]
IMPATIENT = "import sys; from hpo.store import study_database; study_database.TIMEOUT_SECONDS = 3.0\n"
IMPATIENT += "from hpo.cli.commands import main; sys.exit(main(['search', 'first', *sys.argv[1:]]))"


@pytest.mark.slow
@pytest.mark.timeout(3 * GUARD_SECONDS)
def test_a_real_search_outlives_a_restart_and_goes_on_after_a_long_absence(server, url, tmp_path):
    options = [*OPTIONS, "--study-url", url]
    with driver(tmp_path, options, (sys.executable, "-c", IMPATIENT)) as running:
        running.wait_for(lambda: num_reports(tmp_path) > 0)
        for process in running.processes():
            inherits = PASSWORD in process.environ().values()
            assert not inherits or process.pid == running.process.pid, process
        server.stop()
        out, err = running.process.communicate(timeout=GUARD_SECONDS)
        server.start()
        assert running.process.returncode == 75, err
        assert err.count("; waiting, 3 s at most\n") == 1
        assert "the search can be continued: hpo search first\n" in err
        assert "Traceback" not in err
        assert running.left_after(seconds=10) == []
    before = num_reports(tmp_path)
    with driver(tmp_path, options) as running:
        running.wait_for(lambda: num_reports(tmp_path) > before)
        server.stop()
        server.start()
        more_out, more_err = running.process.communicate(timeout=GUARD_SECONDS)
        assert running.process.returncode == 0, more_err
        folders = running.ray_folders()
    trials = Record(tmp_path / "runs", "first").trials()
    assert [(trial.number, len(trial.intermediate_values)) for trial in trials] == [(n, 3) for n in range(4)]
    assert folders == set()
    assert_no_password(tmp_path, out, err, more_out, more_err)
