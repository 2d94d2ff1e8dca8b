"""The storage and the lease on it: a folder and S3 alike."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pytest
from fuzzing import as_json, assert_readable, json_near
from hypothesis import example, given
from hypothesis import strategies as st
from storages import EXPIRING, KINDS, Place, no_wait_for_expiry, place

from hpo.store import lease
from hpo.store.lease import LeaseLostError, acquire_lease
from hpo.store.object_storage import Storage, StorageError
from model.common import s3
from model.common.errors import ConfigError


@pytest.fixture(params=KINDS)
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place(request.param, tmp_path) as made:
        yield made


@pytest.fixture
def storage(there: Place) -> Storage:
    """Of one search."""
    made = Storage(there.address, timeout_seconds=20).subdirectory("first")
    made.create()
    return made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats of a lease."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1.5)


# --- files ----------------------------------------------------------------------------------------------------------


def test_what_was_put_is_there_under_its_name_until_it_is_deleted(storage, there):
    storage.put("a/b/one", b"1")
    storage.put("a/two", b"22")
    storage.put("two", b"another")
    storage.put("a/two", b"333")
    assert {name: stored.size for name, stored in storage.names().items()} == {"a/b/one": 1, "a/two": 3, "two": 7}
    assert storage.names("a").keys() == storage.names("a/").keys() == {"a/b/one", "a/two"}
    assert storage.names("a/two").keys() == {"a/two"}
    assert (storage.get("a/two"), storage.subdirectory("a").get("two")) == (b"333", b"333")
    assert (storage.exists("a/two"), storage.exists("a"), storage.exists("t")) == (True, False, False)
    storage.copy("two", "a/three")
    storage.delete("two")
    storage.delete("two")
    assert storage.names().keys() == {"a/b/one", "a/two", "a/three"}
    assert storage.get("a/three") == b"another"
    with pytest.raises(FileNotFoundError):
        storage.get("two")
    whole = Storage(there.address, timeout_seconds=1)
    assert whole.folders() == ["first"]
    storage.delete_all()
    assert whole.names() == {}


def test_a_large_file_comes_back_as_it_was(storage, tmp_path):
    """Above 10 MB S3 gets it in parts."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(25_000_001))
    storage.put("large", path)
    storage.fetch("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == path.read_bytes()


def test_a_folder_is_brought_as_it_is_there_and_nothing_twice(storage, tmp_path, monkeypatch):
    for name in ("one", "deeper/two"):
        storage.put(f"folder/{name}", name.encode())
    storage.fetch("folder", tmp_path / "here")
    assert [path.name for path in sorted((tmp_path / "here").rglob("*")) if path.is_file()] == ["two", "one"]
    downloads: list[str] = []
    fetch = Storage._fetch
    monkeypatch.setattr(Storage, "_fetch", lambda self, name, to: (downloads.append(name), fetch(self, name, to)))
    storage.put("folder/one", b"another one")
    storage.delete("folder/deeper/two")
    storage.fetch("folder", tmp_path / "here")
    storage.fetch("folder", tmp_path / "here")
    assert downloads == ["folder/one"]
    assert [path.name for path in (tmp_path / "here").rglob("*") if path.is_file()] == ["one"]
    assert (tmp_path / "here" / "one").read_bytes() == b"another one"


def test_a_name_that_leads_out_of_the_folder_is_nobodys(tmp_path):
    """S3 takes any name, also from somebody who may write there and wants a file in our home."""
    with place("s3", tmp_path) as there:
        storage = Storage(there.address, timeout_seconds=1).subdirectory("first")
        storage.put("export/README.md", b"ours")
        storage.put("evil", b"evil")
        for leads in ("export/../../evil", "export/../evil", f"export/{tmp_path}/evil", "export/a/../../evil"):
            there.server.also_listed[f"bucket/some/prefix/first/{leads}"] = there.root / "first" / "evil"
        storage.fetch("export", tmp_path / "home" / "export")
        assert storage.names("export").keys() == {"export/README.md"}
    assert [path.name for path in (tmp_path / "home").rglob("*") if path.is_file()] == ["README.md"]
    assert not (tmp_path / "evil").exists()


def test_a_reader_sees_a_file_whole_while_it_is_replaced(storage):
    contents = [bytes([65 + n]) * (200_000 + 100_000 * n) for n in range(3)]
    storage.put("file", contents[0])
    over = threading.Event()

    def write() -> None:
        for content in itertools.cycle(contents):
            storage.put("file", content)
            if over.wait(0.1):
                return

    with ThreadPoolExecutor(1) as writer:
        done = writer.submit(write)
        try:
            read = [storage.get("file") for _ in range(20)]
        finally:
            over.set()
        done.result()
    assert set(read) <= set(contents)


def test_a_signal_leaves_the_old_file_or_the_new_one(storage):
    old, new = b"old", bytes(30_000_000)
    for seconds in (0.0, 0.01, 0.05):
        storage.put("file", old)
        timer = threading.Timer(seconds, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the signal may come at any time
            timer.start()
            storage.put("file", new)
            time.sleep(2)
        assert storage.get("file") in (old, new)


def test_an_upload_of_which_a_part_is_refused_leaves_the_old_file(tmp_path):
    with place("s3", tmp_path) as there:
        storage = Storage(there.address, timeout_seconds=0.5)
        storage.put("file", b"old")
        there.server.refused_part = "2"
        with pytest.raises(StorageError, match="ACCESS_DENIED"):
            storage.put("file", bytes(35_000_000))
        assert storage.get("file") == b"old"


# --- away, refused --------------------------------------------------------------------------------------------------


def test_who_asks_while_it_is_away_waits(storage, there, caplog):
    storage.put("file", b"1")
    there.goes_away()
    timer = threading.Timer(1.5, there.comes_back)
    timer.start()
    began = time.monotonic()
    storage.put("file", b"2")
    assert time.monotonic() - began > 1.4
    assert storage.get("file") == b"2"
    assert [line.split()[-1] for line in caplog.text.splitlines() if "is back after" in line] == ["s"]
    assert caplog.text.count("; waiting, ") == 1
    assert not storage.is_away


def test_away_for_longer_than_the_patience_is_an_error_that_names_it(storage, there):
    storage.put("file", b"1")
    storage.timeout_seconds = 1.0
    there.goes_away()
    with pytest.raises(StorageError, match=r"first: away for \d+ s \("):
        storage.put("file", b"2")
    assert storage.is_away
    there.comes_back()
    assert storage.get("file") == b"1"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3:/bucket/prefix", "neither a folder nor s3://"),
        ("gs://bucket/prefix", "neither a folder nor s3://"),
        ("s3://key:hush@bucket/prefix", "keys belong into the environment"),
        ("s3://bucket/prefix?access_key=AKIA&secret_key=hush", "access_key: no such option"),
        ("s3://bucket/prefix?scheme=http&endpoint_override=key:hush@localhost:1", "keys belong into the environment"),
        ("s3://bucket/prefix?endpoint=x", "Did you mean endpoint_override?"),
        ("s3://no-such-bucket/prefix", "not found, or access denied"),
    ],
)
def test_what_is_no_storage_is_bad_input_at_once(tmp_path, monkeypatch, address, words):
    with place("s3", tmp_path) as there:
        monkeypatch.setenv("AWS_ENDPOINT_URL", there.server.url)
        with pytest.raises(ConfigError, match=words) as told:
            Storage(address).check()
    assert "hush" not in str(told.value)


def test_refused_keys_are_bad_input_at_once_and_waited_for_later(tmp_path, monkeypatch):
    with place("s3", tmp_path) as there:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(ConfigError, match="SignatureDoesNotMatch"):
            Storage(there.address).check()
        with pytest.raises(StorageError, match="SignatureDoesNotMatch"):
            Storage(there.address, timeout_seconds=0.5).names()


def test_keys_that_expire_meanwhile_are_waited_for(tmp_path, caplog):
    with place(EXPIRING, tmp_path) as there:
        storage = Storage(there.address, timeout_seconds=10).subdirectory("first")
        storage.put("file", b"1")
        there.goes_away()
        timer = threading.Timer(1.0, there.comes_back)
        timer.start()
        storage.put("file", b"2")
        timer.join()
        assert "ExpiredToken" in caplog.text
        assert storage.get("file") == b"2"
        storage.timeout_seconds = 0.5
        there.goes_away()
        with pytest.raises(StorageError, match=r"first: away for .*ExpiredToken"):
            storage.put("file", b"3")


def test_a_server_that_hangs_is_away(tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "_SECONDS", 1.0)
    with place("s3", tmp_path) as there:
        there.server.hang_seconds = 3.0
        with pytest.raises(StorageError, match="Timeout"):
            Storage(there.address, timeout_seconds=0.1).names()


# --- the lease ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_a_second_driver_is_turned_away_by_name_and_let_in_at_once_after_a_release(storage):
    first = acquire_lease(storage)
    first.start_heartbeat(lambda _: None)
    with pytest.raises(ConfigError, match=rf"first: is being run by process {os.getpid()} on \S+"):
        acquire_lease(storage)
    first.check()
    first.release()
    with no_wait_for_expiry():
        second = acquire_lease(storage)
    assert second.generation == first.generation + 1
    assert len(storage.names("lease/")) == 1


@pytest.mark.usefixtures("quick")
def test_a_beat_that_is_under_way_does_not_take_the_release_back(storage, monkeypatch):
    holder, write, beats = acquire_lease(storage), lease._write, threading.Event()

    def late(where: Storage, claim: lease.Claim) -> None:
        if not claim.released:
            beats.set()
            time.sleep(0.3)
        write(where, claim)

    monkeypatch.setattr(lease, "_write", late)
    holder.start_heartbeat(lambda _: None)
    assert beats.wait(60)
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 5.0)
    holder.release()
    assert not holder._heartbeat.is_alive()
    assert lease.newest_claim(storage).released


@pytest.mark.usefixtures("quick")
def test_a_driver_that_was_cut_off_is_succeeded_and_stops_when_it_comes_back(storage):
    cut_off = acquire_lease(storage)  # it raises no counter
    began = time.monotonic()
    second = acquire_lease(storage)
    assert time.monotonic() - began >= lease.EXPIRY_SECONDS
    guarded = storage.subdirectory("", cut_off.check)
    for write in (lambda: guarded.put("study/late", b""), lambda: guarded.delete("x"), lambda: guarded.copy("x", "y")):
        with pytest.raises(LeaseLostError, match=rf"process {os.getpid()} on \S+ has taken this search over"):
            write()
    told: list[StorageError] = []
    cut_off.start_heartbeat(told.append)
    while not told:
        time.sleep(0.05)
    assert isinstance(told[0], LeaseLostError)
    cut_off.release()  # which changes nothing
    assert lease.newest_claim(storage).name == second.name
    second.check()


@pytest.mark.usefixtures("quick")
def test_the_claim_of_a_driver_that_is_known_to_be_dead_is_no_obstacle(storage):
    dead = acquire_lease(storage)
    with no_wait_for_expiry():
        assert acquire_lease(storage, dead_claim=dead.name).previous.name == dead.name


@pytest.mark.usefixtures("quick")
def test_of_many_that_come_at_once_one_gets_it(storage):
    def try_it(_: int) -> lease.Lease | None:
        try:
            taken = acquire_lease(storage)
        except ConfigError:
            return None
        taken.start_heartbeat(lambda _: None)
        return taken

    with ThreadPoolExecutor(6) as drivers:
        taken = [held for held in drivers.map(try_it, range(6)) if held]
    assert len(taken) == 1
    taken[0].check()
    taken[0].release()


@pytest.mark.usefixtures("quick")
def test_of_two_that_come_at_once_both_step_back(storage, monkeypatch):
    rival, write, seen = lease.Claim(name="000001-ffffffff", pid=1, host="elsewhere"), lease._write, []

    def at_once(where: Storage, claim: lease.Claim) -> None:
        monkeypatch.setattr(lease, "_write", write)
        write(where, claim)
        write(where, rival)

    def pause(*_: float) -> float:
        seen.append(lease._names(storage))
        storage.delete(f"lease/{rival.name}.json")
        return 0.0

    monkeypatch.setattr(lease, "_write", at_once)
    monkeypatch.setattr(lease.random, "uniform", pause)
    assert acquire_lease(storage).previous is None
    assert seen == [[rival.name]]


@pytest.mark.usefixtures("quick")
def test_a_claim_that_was_taken_back_is_not_succeeded(storage, monkeypatch):
    holder = acquire_lease(storage)
    holder.start_heartbeat(lambda _: None)
    newest = lease.newest_claim
    seen = [lease.Claim(name="000001-ffffffff", pid=1, host="elsewhere")]
    monkeypatch.setattr(lease, "newest_claim", lambda where: seen.pop() if seen else newest(where))
    with pytest.raises(ConfigError, match="is being run by"):
        acquire_lease(storage)
    holder.check()
    holder.release()


@pytest.mark.usefixtures("quick")
def test_who_waits_for_a_driver_that_signs_off_meanwhile_asks_again_at_once(storage, monkeypatch):
    """Or for one of two that came at once, and stepped back."""
    holder = acquire_lease(storage)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 60.0)
    claim = lease.newest_claim(storage)
    assert not lease._wait_for_expiry(storage, replace(claim, name="000001-ffffffff"))
    holder.release()
    assert not lease._wait_for_expiry(storage, claim)
    storage.delete(f"lease/{claim.name}.json")
    assert not lease._wait_for_expiry(storage, claim)


@pytest.mark.usefixtures("quick")
def test_a_holder_is_not_dead_while_the_storage_is_away(storage, there):
    holder = acquire_lease(storage)
    holder.start_heartbeat(lambda _: None)
    with ThreadPoolExecutor(1) as other:
        there.goes_away()
        waits = other.submit(acquire_lease, storage)
        time.sleep(3 * lease.EXPIRY_SECONDS)
        there.comes_back()
        with pytest.raises(ConfigError, match="is being run by"):
            waits.result()
    holder.release()


@pytest.mark.usefixtures("quick")
def test_who_cannot_reach_the_storage_for_too_long_is_told(storage, there):
    storage.timeout_seconds = 0.5
    told: list[StorageError] = []
    holder = acquire_lease(storage)
    holder.start_heartbeat(told.append)
    there.goes_away()
    while not told:
        time.sleep(0.05)
    assert "away for" in str(told[0])
    there.comes_back()


# --- whatever is in it -----------------------------------------------------------------------------------------------

CLAIM = {"name": "000001-ffffffff", "pid": 1, "host": "elsewhere", "counter": 3, "released": True}
NAMES = st.sampled_from(
    ["000001-ffffffff", "000002-0000000a", "x", "9" * 5000, "-", "000001-", "\u0663-ffffffff", "a/b"]
)


@given(claims=st.dictionaries(NAMES.filter(lambda name: len(name) < 200), json_near(CLAIM), max_size=3))
@example(claims={"000001-ffffffff": b"{"})
@example(claims={"notes": b"mine"})
@example(claims={"000001-ffffffff": as_json({**CLAIM, "pid": "1"})})
@example(claims={"000002-0000000a": as_json(CLAIM)})
def test_whatever_lies_among_the_claims_the_lease_is_taken_or_a_claim_told_as_damaged(tmp_path_factory, claims):
    storage = Storage(str(tmp_path_factory.mktemp("fuzzed")), timeout_seconds=1).subdirectory("first")
    storage.create()
    for name, content in claims.items():
        storage.put(f"lease/{name}.json", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "_wait_for_expiry", lambda storage, claim: True)
        try:
            taken = acquire_lease(storage)
        except StorageError as error:
            assert_readable(error, "damaged")
            return
    assert taken.generation == 1 + max((int(name[:6]) for name in claims if lease.is_claim(name)), default=0)
    taken.check()
    assert {name for name in claims if not lease.is_claim(name)} <= {
        name.removeprefix("lease/").removesuffix(".json") for name in storage.names("lease/")
    }


ADDRESSES = st.sampled_from(
    ["file", "file/x", "loop", "x" * 300, "x/" * 3000, "\x1b[2J", "s3:/a", "gs://a", "\udcff", "", "new"]
)


@given(address=ADDRESSES | st.text())
@example(address="file")
@example(address="x" * 300)
@example(address="loop")
def test_any_text_is_a_folder_to_be_made_or_refused_at_once(tmp_path_factory, address):
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "file").touch()
    (folder / "loop").symlink_to("loop")
    with chdir(folder):
        try:
            storage = Storage(address, timeout_seconds=60)
            storage.check()
        except ConfigError as error:
            assert_readable(error, "storage=")
    assert {path.name for path in folder.iterdir()} == {"file", "loop"}


@given(query=st.text(st.sampled_from("abregionschmdpoit_v=&%#?@[]:/.0é\x1b ")), bucket=st.text(max_size=5))
@example(query="b?region=x", bucket="a#")
@example(query="", bucket="[")
@example(query="", bucket="KEY:sec/ret@bucket")
def test_any_s3_address_has_options_that_are_known_or_is_refused(bucket, query):
    try:
        options = s3.options_of(f"s3://{bucket}?{query}")
    except ConfigError as error:
        assert_readable(error)
    else:
        assert options.keys() <= {"region", "scheme", "endpoint_override"}
        assert not {"@", ":", "["} & set(bucket.partition("/")[0])
