"""A search whose record and checkpoints are in a storage: any driver goes on from there, and none writes late."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from curves import append_report, controller, report, run_all, story, train
from fuzzing import as_json, assert_readable, fewer, json_near
from hypothesis import example, given
from hypothesis import strategies as st
from optuna.artifacts.exceptions import ArtifactNotFound
from storages import KINDS, Place, no_wait_for_expiry, place

from hpo.cli.commands import main
from hpo.policy.retry_policy import FailureAction, classify_failure
from hpo.policy.search_config import SearchConfig
from hpo.store import checkpoint_upload, lease, search_results, study_replication
from hpo.store.checkpoint_retention import Retention
from hpo.store.checkpoint_upload import FENCING_TOKEN, CheckpointSync
from hpo.store.lease import Lease, LeaseLostError
from hpo.store.object_storage import Storage, StorageError
from hpo.store.record import Record
from hpo.store.search_file import RecordError
from hpo.store.study_replication import StorageReplicator, acquire, open_read_only
from hpo.tune.trainable import Pix2PixTrial
from hpo.views.dashboard import PictureStore
from hpo.views.status_file import Status
from hpo.views.watch import _DriverMonitor
from model.checkpoint import load_checkpoint
from model.common.errors import ConfigError, NotSharedError
from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.data.image_sets import Images
from model.training_files import BEST, LAST, strip_name
from model.training_run import TrainingRun


@pytest.fixture(params=KINDS)
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place(request.param, tmp_path) as made:
        yield made


@pytest.fixture
def storage(there: Place, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Of all searches."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1.0)
    monkeypatch.setattr(study_replication, "UPLOAD_SECONDS", 0.05)
    return Storage(there.address, timeout_seconds=10)


def fail(error: StorageError) -> None:
    raise AssertionError(error)


@contextmanager
def driving(runs: Path, storage: Storage, search: SearchConfig, *, dies: bool = False) -> Iterator[StorageReplicator]:
    """A driver's. dies: it leaves its claim as it is, and what its thread has not copied."""
    if not Record.exists(runs, "first") and not storage.exists("first/search.json"):
        Record.create(runs, "first", search)
    with ExitStack() as stack:
        if dies:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(Lease, "release", lambda of: (of._over.set(), of._heartbeat.join()))
            patch.setattr(StorageReplicator, "_work", lambda _: None)
        driver = stack.enter_context(acquire(runs, "first", storage, fail))
        driver.start()
        stack.callback(driver.stop)
        yield driver


# --- the record -----------------------------------------------------------------------------------------------------


def test_a_search_that_loses_its_host_again_and_again_is_the_undisturbed_one(storage, tmp_path, search, undisturbed):
    """Each driver begins with an empty folder, and dies at another point; checkpoints may be ahead of the study."""
    checkpoints: dict[int, list[object]] = {}
    for number in range(4):
        with driving(tmp_path / f"host{number}", storage, search, dies=True) as driver:
            loop = controller(driver.record, driver)
            for epochs in range(1 + number):  # of trials that follow each other
                trial = loop.next_trial()
                train(loop, trial.number, checkpoints.setdefault(trial.number, []), epochs or None)
                if not driver.record.trial(trial.number).state.is_finished():
                    break
    with driving(tmp_path / "last", storage, search) as driver:
        run_all(controller(driver.record, driver), checkpoints)
    with open_read_only(tmp_path, "first", storage) as record:
        assert story(record.trials()) == story(undisturbed.trials())
        assert search_results.document(record)["trials"] == search_results.document(undisturbed)["trials"]


def test_a_trial_is_in_the_storage_before_it_is_handed_out_and_its_reports_soon_after(storage, runs, search, tmp_path):
    with driving(runs, storage, search) as driver:
        loop = controller(driver.record, driver)
        for number in range(2):
            loop.next_trial()
            with open_read_only(tmp_path, "first", storage) as record:
                assert len(record.trials()) == number + 1
        loop.on_report(1, [report(1, 0.5)])
        end = time.monotonic() + 10
        with open_read_only(tmp_path, "first", storage) as record:
            while not record.trial(1).intermediate_values:
                assert time.monotonic() < end
                record.refresh()


def test_files_go_only_once_the_storage_knows_why(storage, runs, search, monkeypatch):
    with driving(runs, storage, search, dies=True) as driver:
        inside = driver.record.storage
        loop = controller(driver.record, driver, Retention(driver.record, driver.remove))
        loop.next_trial()
        inside.put("trials/00000/last.safetensors", b"1")
        inside.put(f"trials/00000/{FENCING_TOKEN}", b"1")
        inside.put("trials/00000/best.safetensors", b"1")
        loop.on_report(0, [report(epoch, 0.5) for epoch in range(1, search.epochs + 1)])
        assert inside.exists("trials/00000/last.safetensors")
        driver._update()
        assert inside.names("trials/").keys() == {"trials/00000/best.safetensors"}


def test_a_folder_whose_driver_was_the_last_is_ahead_of_the_storage(storage, runs, search, tmp_path):
    with driving(runs, storage, search, dies=True) as driver:
        controller(driver.record, driver).next_trial()
        append_report(driver.record, 0, report(1, 0.5))  # the thread would have copied it
    with no_wait_for_expiry(), driving(runs, storage, search) as driver:  # nor does it wait for itself
        assert driver.record.trial(0).last_step == 1
    with driving(tmp_path / "other", storage, search) as driver:
        append_report(driver.record, 0, report(2, 0.6))
    with driving(runs, storage, search) as driver:
        assert driver.record.trial(0).last_step == 2


def test_an_old_head_that_comes_back_writes_nothing(storage, runs, search, tmp_path):
    told: list[StorageError] = []
    Record.create(runs, "first", search)
    with acquire(runs, "first", storage, told.append) as old, ExitStack() as stack:
        old.start()
        stack.callback(old.stop)
        loop = controller(old.record, old)
        loop.next_trial()
        old._lease._over.set()  # cut off: its counter stands still
        with driving(tmp_path / "new", storage, search) as new:
            controller(new.record, new).next_trial()
            with pytest.raises(LeaseLostError, match="has taken this search over"):
                loop.next_trial()
            with pytest.raises(LeaseLostError):
                old.flush()
            append_report(new.record, 0, report(1, 0.5))
            loop.on_report(0, [report(1, 0.1)])
            while not told:
                time.sleep(0.05)
    with open_read_only(tmp_path, "first", storage) as record:
        assert [trial.intermediate_values for trial in record.trials()] == [{1: 0.5}]


def test_who_looks_from_elsewhere_sees_it_run_and_end(storage, runs, search, tmp_path):
    with driving(runs, storage, search) as driver:
        controller(driver.record, driver).next_trial()
        driver.record.storage.put("trials/00000/epoch-0001.png", b"picture")
        Status(seconds=1.0).write(driver.record.folder)
        end = time.monotonic() + 10
        while not storage.exists("first/status.json"):
            assert time.monotonic() < end
        with open_read_only(tmp_path, "first", storage) as record:
            assert _DriverMonitor(record).status() == (Status(seconds=1.0), "")
            assert PictureStore(record).open_reader("00000-0001").read() == b"picture"
            with pytest.raises(ArtifactNotFound):
                PictureStore(record).open_reader("00000-0002")
    with open_read_only(tmp_path, "first", storage) as record:
        assert _DriverMonitor(record).status() == (Status(phase="ended"), "first is not running")


def test_a_search_that_began_without_a_storage_moves_into_it(storage, runs, done, tmp_path, undisturbed):
    best = done.trial_folder(0) / BEST
    best.parent.mkdir(parents=True)
    best.write_bytes(b"checkpoint")
    with driving(runs, storage, done.search):
        pass
    with open_read_only(tmp_path, "first", storage) as record:
        assert story(record.trials()) == story(undisturbed.trials())
        assert record.fetch(record.trial_folder(0) / BEST).read_bytes() == b"checkpoint"
    with pytest.raises(ConfigError, match=r"lives in a storage: --storage \S+"), open_read_only(runs, "first", None):
        pass


def test_two_searches_of_one_name_are_kept_apart(storage, runs, search, tmp_path):
    with driving(runs, storage, search):
        pass
    mine = Record.create(tmp_path / "mine", "first", search)
    with pytest.raises(ConfigError, match="is another search than"), driving(tmp_path / "mine", storage, search):
        pass
    assert Record(tmp_path / "mine", "first").id == mine.id


def test_every_command_reads_from_the_storage_alone(  # noqa: PLR0917
    storage, runs, done, undisturbed, tmp_path, monkeypatch, capsys
):
    with driving(runs, storage, done.search):
        pass
    shutil.rmtree(runs)
    document = search_results.document(undisturbed)
    monkeypatch.chdir(tmp_path)
    at = ["--storage", storage.address]
    assert main(["list", *at, "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["searches"]
    assert (listed["name"], listed["trials"]) == ("first", done.search.trials)
    assert main(["show", "first", *at, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"] == document["trials"]
    assert main(["report", "first", *at]) == 0
    assert capsys.readouterr().out == "runs/first/report.html\n"
    assert storage.address.split("?")[0] in Path("runs/first/report.html").read_text()
    assert main(["stop", "first", *at]) == 0
    assert "first is not running" in capsys.readouterr().err
    assert main(["show", "frist", *at]) == 2
    assert "Did you mean first?" in capsys.readouterr().err
    assert main(["rm", "first", *at, "--yes"]) == 0
    capsys.readouterr()
    assert main(["list", *at, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"searches": []}


# --- a training's files ---------------------------------------------------------------------------------------------


NO_TIMES = {"seconds": 0, "eval_seconds": 0}
CONFIG = TrainConfig(width=4, batch_size=16, images_per_epoch=64, epochs=6, precision="float32")


@pytest.fixture(scope="module")
def few() -> DeviceImages:
    torch.set_num_threads(1)
    images = DataConfig().load()
    few = Images(train=images.train[:100], validation=images.validation[:20])
    return DeviceImages.to_device(few, "gaussian:30", torch.device("cpu"), num_validation=20)


@dataclass
class Node:
    """Where attempts at trial 7 work, without Ray."""

    scratch: Path
    storage: Storage
    few: DeviceImages

    def attempt(self, generation: int = 1, config: TrainConfig = CONFIG) -> Pix2PixTrial:
        """One that has not begun."""
        where = {"address": self.storage.address, "search": "first", "folder": "trials/00007"}
        about = {"folder": str(self.scratch / "00007"), "needs": "/nowhere/search.json"}
        about |= {"number": 7, "train": config.as_dict(), "objective": "ssim", "figures": None}
        made = Pix2PixTrial.__new__(Pix2PixTrial)  # its __init__ is Ray's
        made.config = {**about, "storage": {**where, "generation": generation, "timeout_seconds": 5}}
        made.setup(made.config, ())
        made._device_images = self.few
        return made

    def begins(self, generation: int = 1, config: TrainConfig = CONFIG) -> Node:
        self.trial = self.attempt(generation, config)
        self.run = self.trial._run = self.trial._begin()
        self.place = self.trial._checkpoints
        return self

    def trains(self) -> Node:
        self.trial.step()
        return self


@pytest.fixture
def nodes(storage: Storage, few: DeviceImages, tmp_path: Path) -> list[Node]:
    storage.subdirectory("first").create()
    storage.put("first/search.json", b"{}")
    return [Node(tmp_path / f"node{number}", storage, few) for number in range(3)]


@pytest.fixture
def kept(storage: Storage, tmp_path: Path) -> Callable[[str], int]:
    """Epochs of a checkpoint in the storage."""

    def epochs(name: str) -> int:
        storage.fetch(f"first/trials/00007/{name}", tmp_path / "kept")
        return len(load_checkpoint(tmp_path / "kept")[1]["reports"])

    return epochs


def test_a_trial_goes_on_on_another_node_and_ends_as_an_undisturbed_one(nodes, kept, few, tmp_path):
    undisturbed = TrainingRun(CONFIG, few, tmp_path / "undisturbed", "ssim", number=7)
    for number in range(4):
        undisturbed.run_epoch()
        run = nodes[number % 2].begins().trains().run
    assert [report.as_dict() | NO_TIMES for report in run.reports] == [
        report.as_dict() | NO_TIMES for report in undisturbed.reports
    ]
    best, _ = max(enumerate(run.reports, start=1), key=lambda each: (each[1].ssim, each[0]))
    assert (kept(LAST), kept(BEST)) == (4, best)
    assert nodes[0].storage.exists(f"first/trials/00007/{strip_name(4)}")
    nodes[1].place.clean_up()
    assert not nodes[1].place.folder.exists()


def test_the_first_step_of_a_later_attempt_tells_what_the_checkpoint_has_and_trains_nothing(nodes, kept):
    """The record may lack it; and the driver may have decided that it was the last."""
    told = nodes[0].attempt().step()
    again = nodes[1].attempt()
    assert again.step() | {"step_seconds": 0} == told | {"step_seconds": 0, "node": None}
    assert kept(LAST) == 1
    after = again.step()
    assert (after["epoch"], after["reports"][:1], after["node"]) == (2, told["reports"], told["node"])


def test_an_attempt_that_died_between_last_and_best_is_mended(nodes, kept, monkeypatch):
    ssims = itertools.count(1)
    first = nodes[0].begins()
    evaluate = first.run.trainer._evaluate
    monkeypatch.setattr(first.run.trainer, "_evaluate", lambda: {**evaluate(), "ssim": next(ssims) / 10})
    first.trains()
    monkeypatch.setattr(Storage, "copy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        first.trains()
    monkeypatch.undo()
    assert (kept(LAST), kept(BEST)) == (2, 1)
    nodes[1].begins()
    assert (kept(LAST), kept(BEST)) == (2, 2)


def test_an_attempt_that_was_given_up_writes_nothing_when_it_comes_back(nodes, kept):
    cut_off = nodes[0].begins().trains()
    nodes[1].begins().trains()
    nodes[1].trains()
    with pytest.raises(StorageError, match="another attempt has taken this training up"):
        cut_off.trains()
    assert kept(LAST) == 3
    nodes[2].begins(generation=2)
    with pytest.raises(StorageError, match="another driver has taken this search over"):
        nodes[0].begins(generation=1)


def test_a_checkpoint_of_a_suggestion_that_got_lost_is_not_taken_up(nodes, kept):
    nodes[0].begins().trains()
    nodes[1].begins(config=replace(CONFIG, lr_g=1e-3))
    assert nodes[1].run.reports == []
    nodes[1].trains()
    assert nodes[2].begins(config=replace(CONFIG, lr_g=1e-3)).run.reports == nodes[1].run.reports


def test_a_damaged_checkpoint_falls_back_on_the_best(nodes, storage, monkeypatch):
    first = nodes[0].begins()
    evaluate, ssims = first.run.trainer._evaluate, iter([0.5, 0.4])
    monkeypatch.setattr(first.run.trainer, "_evaluate", lambda: {**evaluate(), "ssim": next(ssims)})
    first.trains().trains()
    content = bytearray(storage.get(f"first/trials/00007/{LAST}"))
    content[-3] ^= 1
    storage.put(f"first/trials/00007/{LAST}", bytes(content))
    assert len(nodes[1].begins().run.reports) == 1


def test_a_node_that_does_not_see_the_storage_ends_the_search_and_says_so(nodes, monkeypatch):
    monkeypatch.setattr(checkpoint_upload, "_GRACE_SECONDS", 0.5)
    nodes[0].storage.delete("first/search.json")
    with pytest.raises(NotSharedError, match=r"first is not visible from node \S+; use a shared --storage") as told:
        nodes[0].begins()
    assert classify_failure(SimpleNamespace(cause=told.value)).action is FailureAction.ABORT_SEARCH


def test_a_node_that_does_not_see_the_folder_says_that_a_storage_would_help(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_upload, "_GRACE_SECONDS", 0.5)
    about = {"folder": str(tmp_path / "trials" / "00007"), "needs": str(tmp_path / "search.json"), "storage": None}
    with pytest.raises(NotSharedError, match=rf"{tmp_path} is not visible from node \S+; use a shared --storage"):
        CheckpointSync(about).restore(CONFIG)
    (tmp_path / "search.json").write_text("{}")
    CheckpointSync(about).restore(CONFIG)


# --- whatever is in it -----------------------------------------------------------------------------------------------


@given(data=st.data())
@fewer(2)
def test_whatever_a_storage_has_its_search_is_looked_at_or_told_as_damaged(undisturbed, tmp_path_factory, data):
    """search.json, copies of the study, and files beside them; nothing is written outside the folder that goes."""
    root = tmp_path_factory.mktemp("fuzzed")
    content = {
        "search.json": data.draw(st.just(as_json(undisturbed.about)) | json_near(undisturbed.about), "search.json"),
        "study/000001-0000000a.db": (undisturbed.folder / "study.db").read_bytes(),
        **data.draw(st.dictionaries(st.sampled_from(STUDIES), st.binary(max_size=50), max_size=2), "studies"),
    }
    for name, text in content.items():
        (path := root / "first" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    (runs := tmp_path_factory.mktemp("runs")).joinpath("first").mkdir()
    (runs / "first" / "storage.json").write_bytes(
        data.draw(json_near({"address": str(root), "claim": "000001-0000000a"}))
    )
    storage = Storage(str(root), timeout_seconds=1)
    try:
        with open_read_only(runs, "first", storage) as record:
            assert len(record.trials()) == 8
    except (RecordError, ConfigError, StorageError) as error:
        assert_readable(error)
    for of in (None, storage):
        try:
            with acquire(runs, "first", of, fail) as found:
                assert len(found.record.trials()) == 8
        except (RecordError, ConfigError, StorageError) as error:
            assert_readable(error)


STUDIES = [
    "study/000002-0000000b.db",
    "study/x.db",
    "study/99.db",
    "study/000003-0000000c",
    "study/a/000009-0000000a.db",
]


@given(
    owner=st.binary() | st.sampled_from([b"000001-ffffffff", b"999999-ffffffff", b"9" * 5000 + b"-ffffffff", b"\xff"])
)
@example(owner=b"mine")
def test_whatever_an_owner_says_a_training_is_taken_up_or_is_a_later_drivers(tmp_path_factory, owner):
    root, node = tmp_path_factory.mktemp("fuzzed"), tmp_path_factory.mktemp("node")
    storage = Storage(str(root), timeout_seconds=1).subdirectory("first")
    storage.put("search.json", b"")
    storage.put(f"trials/00000/{FENCING_TOKEN}", owner)
    where = {"address": str(root), "search": "first", "folder": "trials/00000", "generation": 7, "timeout_seconds": 1.0}
    place = CheckpointSync({"folder": str(node / "0"), "needs": "search.json", "storage": where})
    if owner.startswith(b"999999-f"):
        with pytest.raises(StorageError, match="another driver"):
            place.restore(TrainConfig())
        return
    place.restore(TrainConfig())
    assert storage.get(f"trials/00000/{FENCING_TOKEN}").startswith(b"000007-")
