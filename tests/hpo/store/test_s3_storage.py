"""Images from s3://, read by pyarrow from a stand-in server: as from the folder, or a clear error in bounded time."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3_server
import skimage.data
from fuzzing import assert_readable, damaged, fewer
from hypothesis import example, given
from hypothesis import strategies as st
from loopback import listening
from PIL import Image

from hpo.cli.commands import main
from hpo.store import object_storage
from hpo.store.object_storage import Storage, StorageError
from model.common import s3
from model.common.errors import ConfigError, MachineError
from model.data import folder_files, image_folder, image_reading
from model.data.data_config import DataConfig
from model.data.image_formats import DataError

SMALL = ["--set", "width=4", "--set", "batch_size=4", "--crop", "32", "--images-per-epoch", "4", "--epochs", "1"]


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/some/set/: crops of photographs; pairs/: noisy/ and clean/."""
    root = tmp_path_factory.mktemp("buckets")
    for number, name in enumerate(("astronaut", "chelsea", "coffee", "rocket", "cat")):
        pixels = getattr(skimage.data, name)()[100:164, 100 : 164 + number]
        path = root / "photos" / "some" / "set" / "a folder, +é" / f"{name}.png"
        noisy, clean = (root / "pairs" / kind / f"{name}.png" for kind in ("noisy", "clean"))
        for target, content in ((path, pixels), (clean, pixels), (noisy, pixels ^ 3)):
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(target)
    (root / "photos" / "some" / "set" / "notes.txt").write_text("not an image")
    (root / "photos" / "some" / "set" / ".hidden.png").write_text("not an image")
    (root / "photos" / "some" / "settings.png").write_text("another prefix")
    return root


@pytest.fixture
def server(buckets: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3_server.StandIn]:
    with s3_server.serving(buckets) as stand_in:
        monkeypatch.setenv("AWS_ENDPOINT_URL", stand_in.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.SECRET)
        yield stand_in


@pytest.fixture
def train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str]]:
    """Exit code and stderr of hpo train on these images."""

    def run(data: str) -> tuple[int, str]:
        code = main(["train", "--to", str(tmp_path / "out"), "--data", data, *SMALL])
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("prefix", "noise"), [("photos/some/set", "gaussian:30"), ("photos/some/set/", "gaussian:30"), ("pairs", "real")]
)
def test_a_prefix_gives_the_images_of_the_folder(server, buckets, prefix, noise):
    there = DataConfig(data=f"s3://{prefix}", noise=noise, crop=32)
    here = DataConfig(data=str(buckets / prefix), noise=noise, crop=32)
    assert there.load().digest == here.load().digest
    assert np.array_equal(there.load_test().clean, here.load_test().clean)
    assert sum(asked == f"GET /{prefix.split('/')[0]}" for asked in server.asked) >= 2  # its listing comes in parts


def test_what_is_too_large_for_an_image_is_not_even_fetched(server, monkeypatch):
    monkeypatch.setattr(image_reading, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match=r"bytes, above 1,000; compress it"):
        DataConfig(data="s3://photos/some/set", crop=32).load()
    assert [asked for asked in server.asked if asked.endswith(".png")] == []


def test_an_endpoint_can_be_named_in_the_address(server, buckets, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    query = f"scheme=http&endpoint_override={server.url.removeprefix('http://')}"
    here = DataConfig(data=str(buckets / "photos/some/set"), crop=32).load()
    assert DataConfig(data=f"s3://photos/some/set?{query}", crop=32).load().digest == here.digest


def test_a_model_is_trained_on_a_prefix_though_the_server_is_overloaded_at_first(server, train):
    server.failures = 1
    code, err = train("s3://photos/some/set")
    assert code == 0, err
    assert "epoch 1/1" in err
    assert server.failures == 0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("s3://no-such-bucket/set", "NoSuchBucket"),
        ("s3://photos/some/se", "does not exist 'photos/some/se"),
        ("s3://photos/some/set?endpoint=x", "endpoint: no such option. Did you mean endpoint_override?"),
        ("s3://AKIA:hush@photos/some/set", "keys belong into the environment"),
        ("s3://", "data=s3://: "),
    ],
)
def test_what_is_not_there_is_bad_input(server, data, words, train, tmp_path):
    code, err = train(data)
    assert code == 2
    assert words in err
    assert "hush" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("variable", "words"),
    [("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"), ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId")],
)
def test_refused_keys_are_bad_input(server, monkeypatch, variable, words, train):
    monkeypatch.setenv(variable, "wrong")
    code, err = train("s3://photos/some/set")
    assert code == 2
    assert words in err
    assert len(server.asked) == 1  # it is not asked again and again


def test_a_search_on_a_missing_bucket_ends_before_anything_is_written(server, tmp_path, capsys):
    assert main(["search", "first", "--runs", str(tmp_path / "runs"), "--data", "s3://none/set"]) == 2
    assert "data=s3://none/set: not found" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_server_that_is_away_or_overloaded_or_hangs_is_the_machines_failure(server, monkeypatch, train):
    monkeypatch.setattr(folder_files, "_S3_ATTEMPTS", 2)
    monkeypatch.setattr(s3, "_SECONDS", 1.0)
    server.failures = 1_000
    code, err = train("s3://photos/some/set")
    assert (code, "SlowDown" in err) == (4, True)
    assert len(server.asked) == 2
    monkeypatch.setattr(folder_files, "_S3_ATTEMPTS", 1)
    server.failures, server.hang_seconds = 0, 3.0
    code, err = train("s3://photos/some/set")
    assert (code, "Timeout" in err) == (4, True)
    with socket.socket() as unheard:  # bound, and not listening
        unheard.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unheard.getsockname()[1]}")
        code, err = train("s3://photos/some/set")
    assert (code, "Could not connect" in err) == (4, True)


def test_a_server_that_goes_away_in_the_middle_is_asked_for_no_further_image(server, monkeypatch, train):
    monkeypatch.setattr(folder_files, "_S3_ATTEMPTS", 1)
    pixels = image_folder._read_pixels

    def then_dies(*arguments: object) -> np.ndarray:
        image = pixels(*arguments)
        server.failures = 1_000
        return image

    monkeypatch.setattr(image_folder, "_read_pixels", then_dies)
    code, err = train("s3://photos/some/set")
    assert code == 4
    assert "cannot be read" in err
    assert server.failures == 999


# --- whatever a server answers ---------------------------------------------------------------------------------------

LISTED = (
    b"<ListBucketResult><Name>photos</Name><KeyCount>1</KeyCount><IsTruncated>false</IsTruncated><Contents>"
    b"<Key>some/../../a.png</Key><Size>3</Size><LastModified>2030-01-01T00:00:00.000Z</LastModified></Contents>"
    b"</ListBucketResult>"
)
REFUSED = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
# Left out: an error whose first tag is a closing one. The XML parser of pyarrow 26 then ends the process (SIGSEGV).
BODIES = (st.binary() | damaged(LISTED) | damaged(REFUSED)).filter(lambda body: not re.match(rb"[^<]*</", body))


class _Answers(BaseHTTPRequestHandler):
    """The same to each request. stand_in: status and body."""

    stand_in: list[Any]

    def do_GET(self) -> None:
        status, body = self.stand_in
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(b"" if self.command == "HEAD" else body)

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing is told."""


@pytest.fixture(scope="module")
def answers() -> Iterator[tuple[list[Any], str]]:
    """What is answered, to be set, and the options of an address."""
    given_now: list[Any] = [200, b""]
    with listening(_Answers, given_now) as port, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", s3_server.KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.SECRET)
        patch.setattr(folder_files, "_S3_ATTEMPTS", 1)
        patch.setattr(object_storage, "_ATTEMPTS", 1)
        yield given_now, f"region=x&scheme=http&endpoint_override=127.0.0.1:{port}"


@given(status=st.sampled_from([200, 200, 206, 301, 403, 404, 500]), body=BODIES)
@example(status=200, body=LISTED)
@fewer(2)
def test_whatever_a_server_answers_is_read_or_told_and_leads_out_of_no_folder(answers, tmp_path_factory, status, body):
    given_now, options = answers
    given_now[:] = [status, body]
    with pytest.raises((ConfigError, MachineError)) as refused:
        DataConfig(data=f"s3://photos/some?{options}", crop=32).load()
    assert_readable(refused.value)
    place, folder = (
        Storage(f"s3://photos?{options}", timeout_seconds=0.1).subdirectory("some"),
        tmp_path_factory.mktemp("fuzzed"),
    )
    try:
        place.check()
        place.fetch("", folder / "inside")
    except (ConfigError, StorageError) as error:
        assert_readable(error)
    assert {path.name for path in folder.iterdir()} <= {"inside"}
