import gzip
import io
import logging
import threading
import tracemalloc
import urllib.error
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import assert_readable
from hypothesis import given
from hypothesis import strategies as st

from model.common.errors import ConfigError
from model.data import fashion_mnist
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.data.image_formats import DataError
from model.data.pixel_format import EIGHT_BITS
from model.picture_strip import to_uint8

TEST_FILE = "t10k-images-idx3-ubyte.gz"


def where(name: str) -> Path:
    return next(
        folder / name for folder in (fashion_mnist._cache(), fashion_mnist._DEBIAN) if (folder / name).is_file()
    )


@pytest.fixture(scope="module")
def packed() -> bytes:
    return where(TEST_FILE).read_bytes()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache on a machine that has no Fashion-MNIST."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion_mnist, "_DEBIAN", tmp_path / "nowhere")
    return tmp_path / "cache" / "pix2pix-search" / "fashion-mnist"


def serve(monkeypatch, content: bytes) -> list[str]:
    """Answer every request with the content; gives the addresses asked for."""
    asked: list[str] = []

    def answer(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(fashion_mnist._HTTPS, "open", answer)
    return asked


def test_fashion_mnist_is_padded_with_black_and_split_in_order(all_images, all_test_images):
    raw = np.frombuffer(gzip.decompress(where("train-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    raw = raw.reshape(60_000, 28, 28)
    assert all_images.train.shape == (55_000, 1, 32, 32)
    assert all_images.validation.clean.shape == (5_000, 1, 32, 32)
    assert all_test_images.shape == (10_000, 1, 32, 32)
    assert all_images.train.dtype == all_images.validation.clean.dtype == all_test_images.dtype == np.uint8
    assert np.array_equal(all_images.train[:, 0, 2:-2, 2:-2], raw[:55_000])
    assert np.array_equal(all_images.validation.clean[:, 0, 2:-2, 2:-2], raw[55_000:])
    for split in (all_images.train, all_images.validation.clean, all_test_images):
        edge = split.copy()
        edge[:, :, 2:-2, 2:-2] = 0
        assert not edge.any()


def test_unit_values_are_the_pixels_and_come_back_exactly():
    pixels = np.arange(256, dtype=np.uint8)
    assert EIGHT_BITS.to_unit(pixels).dtype == np.float32
    np.testing.assert_allclose(EIGHT_BITS.to_unit(pixels), np.linspace(-1, 1, 256), atol=1e-6)
    assert np.array_equal(to_uint8(EIGHT_BITS.to_unit(pixels)), pixels)


def test_all_wrong_data_settings_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        DataConfig(data="fashion-mnits", noise="gaussian:0")
    first, second = str(caught.value).splitlines()
    assert first == "data=fashion-mnits: neither a data set nor a folder. Did you mean fashion-mnist?"
    assert second.startswith("noise=gaussian:0: ")


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


DAMAGES = {
    "flipped in the gzip header": lambda packed: flipped(packed, 0),
    "flipped early": lambda packed: flipped(packed, 60),
    "flipped in the middle": lambda packed: flipped(packed, len(packed) // 2),
    "flipped in its checksum": lambda packed: flipped(packed, len(packed) - 6),
    "cut short": lambda packed: packed[:-1000],
    "empty": lambda packed: b"",
    "no gzip": lambda packed: b"<html>404</html>",
    "other content": lambda packed: gzip.compress(b"other content"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(damage, packed, cache):
    cache.mkdir(parents=True)
    path = cache / TEST_FILE
    path.write_bytes(DAMAGES[damage](packed))
    with pytest.raises(DataError) as caught:
        DataConfig().load_test()
    assert str(caught.value).startswith(f"{path}: damaged")


def test_without_data_and_network_the_message_says_what_to_do(cache, monkeypatch):
    def answer(url: str, timeout: float) -> io.BytesIO:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(fashion_mnist._HTTPS, "open", answer)
    with pytest.raises(DataError) as caught:
        DataConfig().load_test()
    assert fashion_mnist._UPSTREAM.startswith("https://")
    for words in ("apt-get install dataset-fashion-mnist", TEST_FILE, str(cache), "no network"):
        assert words in str(caught.value)


def test_a_download_goes_into_the_cache_and_is_not_repeated(packed, cache, monkeypatch, all_test_images, caplog):
    asked = serve(monkeypatch, packed)
    with caplog.at_level(logging.WARNING):
        first = DataConfig().load_test()
    second = DataConfig().load_test()
    assert np.array_equal(first.clean, all_test_images)
    assert np.array_equal(second.clean, all_test_images)
    assert [url.rpartition("/")[2] for url in asked] == [TEST_FILE]
    assert asked[0] in caplog.text
    assert [path.name for path in cache.iterdir()] == [TEST_FILE]
    assert (cache / TEST_FILE).read_bytes() == packed


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_download_is_refused_and_leaves_nothing(damage, packed, cache, monkeypatch):
    serve(monkeypatch, DAMAGES[damage](packed))
    with pytest.raises(DataError) as caught:
        DataConfig().load_test()
    assert fashion_mnist._UPSTREAM + TEST_FILE in str(caught.value)
    assert not cache.exists()


def test_a_download_that_cannot_be_kept_names_what_names_another_place(packed, cache, monkeypatch):
    serve(monkeypatch, packed)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with pytest.raises(DataError, match=r"/proc/nowhere/.*: cannot be made .*; XDG_CACHE_HOME names another"):
        DataConfig().load_test()


def test_an_endless_download_is_refused(packed, cache, monkeypatch):
    serve(monkeypatch, packed)
    monkeypatch.setattr(fashion_mnist, "_MAX_DOWNLOAD_BYTES", len(packed) - 1)
    with pytest.raises(DataError, match="larger than"):
        DataConfig().load_test()
    assert not cache.exists()


def test_a_download_that_unpacks_to_far_too_much_is_refused_before_it_does(packed, cache, monkeypatch):
    """2 GB of zeros in 2 MB; each read is at most what the file should have, and a byte."""
    zeros = gzip.compress(bytes(1 << 20), 9)
    serve(monkeypatch, zeros * 2_000)
    tracemalloc.start()
    with pytest.raises(DataError, match="damaged"):
        DataConfig().load_test()
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()
    assert not cache.exists()


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/secret", "file:///etc/hostname", "ftp://127.0.0.1:{port}/x"]
)
def test_a_download_is_not_led_away_from_https(target, packed, cache, monkeypatch):
    asked = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            leads = len(asked) == 1
            self.send_response(302 if leads else 200)
            self.send_header("Location", target.format(port=server.server_port))
            self.end_headers()
            self.wfile.write(b"" if leads else packed)

        def log_message(self, *_: object) -> None:
            """Nothing is told."""

    with HTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(fashion_mnist, "_UPSTREAM", f"http://127.0.0.1:{server.server_port}/")
        with pytest.raises(DataError, match=r"not https|not allowed"):
            DataConfig().load_test()
        server.shutdown()
    assert asked == [f"/{TEST_FILE}"]
    assert not cache.exists()


def test_images_on_the_device_are_those_of_the_arrays_even_read_only_ones(images):
    for array in (images.train, images.validation.clean):
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        placed = DeviceImages.to_device(images, "gaussian:30", torch.device("cpu"), num_validation=50)
    for array in (images.train, images.validation.clean):
        array.flags.writeable = True
    assert np.array_equal(placed.train.numpy(), images.train)
    assert np.array_equal(placed.validation.numpy(), EIGHT_BITS.to_unit(images.validation.clean[:50]))
    assert placed.validation_noisy.shape == (50, 1, 32, 32)
    assert 0.1 < (placed.validation_noisy - placed.validation).std().item() < 30 / 127.5


@given(content=st.binary() | st.binary().map(gzip.compress))
def test_any_bytes_in_the_cache_are_told_as_damaged(cache, content):
    cache.mkdir(parents=True, exist_ok=True)
    (cache / TEST_FILE).write_bytes(content)
    with pytest.raises(DataError) as refused:
        DataConfig().load_test()
    assert_readable(refused.value, f"{cache / TEST_FILE}: damaged")
