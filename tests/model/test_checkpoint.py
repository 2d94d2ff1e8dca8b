import dataclasses
import json
import os
import pickle
import stat
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import JSON, as_json, assert_readable, damaged, json_near, near
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save

from model import checkpoint
from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.common.errors import ConfigError
from model.common.files import write_atomically
from model.config import TrainConfig
from model.generator import Generator
from model.trainer import load_generator
from model.training_report import EvalReport

STATE = {"config": {"lr_g": 2e-4}, "notes": {"trial": 7, "name": "größte"}, "reports": [{"ssim": "nan"}]}


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "weight": torch.randn(3, 2, 4, 4).to(memory_format=torch.channels_last),
        "transposed": torch.randn(2, 5).T,
        "step": torch.tensor(3.0),
        "count": torch.tensor(7, dtype=torch.int64),
        "half": torch.randn(3).bfloat16(),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "none": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }


def refused(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        load_checkpoint(path)
    except CheckpointError as error:
        return str(path) in str(error)
    return False


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_tensors_and_state_come_back_bit_for_bit(tmp_path):
    path, saved = tmp_path / "new" / "deep" / "checkpoint.safetensors", some_tensors()
    save_checkpoint(path, saved, STATE)
    loaded, state = load_checkpoint(path)
    assert state == STATE
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (loaded[name], tensor)]
        assert torch.equal(*bits), name


def test_a_checkpoint_is_replaced_as_one_file(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, some_tensors(), {"epoch": 1})
    save_checkpoint(path, some_tensors(), {"epoch": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(path, some_tensors(), {"epoch": float("nan")})
    assert load_checkpoint(path)[1] == {"epoch": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_every_single_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"w": torch.randn(2, 3), "n": torch.tensor(5)}, {"config": {"width": 4}})
    content = path.read_bytes()
    accepted = [bit for bit in range(8 * len(content)) if not refused(path, flipped(content, bit))]
    assert accepted == []
    assert not refused(path, content)


@pytest.fixture(scope="module")
def network_file(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("network") / "checkpoint.safetensors"
    save_checkpoint(path, Generator(TrainConfig(width=4), channels=1, image_size=32).state_dict(), STATE)
    return path.read_bytes()


def test_random_flipped_bits_in_a_networks_checkpoint_are_noticed(tmp_path, network_file):
    draw = np.random.default_rng(0)
    header = 8 + int.from_bytes(network_file[:8], "little")
    bits = [*draw.integers(8 * len(network_file), size=150).tolist(), *draw.integers(8 * header, size=150).tolist()]
    assert [bit for bit in bits if not refused(tmp_path / "c", flipped(network_file, bit))] == []


def test_a_checkpoint_cut_short_anywhere_is_noticed(tmp_path, network_file):
    draw = np.random.default_rng(0)
    lengths = [*range(12), *draw.integers(len(network_file), size=100).tolist(), len(network_file) - 1]
    assert [length for length in lengths if not refused(tmp_path / "c", network_file[:length])] == []
    assert refused(tmp_path / "c", network_file + b"\0")


def test_safetensors_without_a_digest_are_refused(tmp_path):
    assert refused(tmp_path / "c", save({"w": torch.zeros(2)}))
    assert refused(tmp_path / "c", save({"w": torch.zeros(2)}, metadata={"state": "{}"}))


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_pickle_is_refused_and_its_code_never_runs(tmp_path, write):
    path, marker = tmp_path / "checkpoint.safetensors", tmp_path / "marker"
    with path.open("wb") as file:
        write(Trap(marker), file)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not marker.exists()
    if write is pickle.dump:
        pickle.loads(path.read_bytes())
        assert marker.exists()  # the trap works


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="checkpoint not found"):
        load_checkpoint(tmp_path / "checkpoint.safetensors")


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_that_waits_in_a_folder_of_everybodys_is_not_followed(tmp_path, monkeypatch):
    """As /tmp is: whoever knows the name that a file has while it is written could be there first."""
    mine, there = tmp_path / "mine", tmp_path / "everybodys"
    mine.write_bytes(b"mine")
    there.mkdir()
    for name in (f".report.{os.getpid()}.html", ".report.00000000.html"):
        (there / name).symlink_to(mine)
    (there / "report.html").symlink_to(mine)
    write_atomically(there / "report.html", b"new")
    monkeypatch.setattr("secrets.token_hex", lambda _: "00000000")  # and if it were guessed
    with pytest.raises(FileExistsError):
        write_atomically(there / "report.html", b"newer")
    assert mine.read_bytes() == b"mine"
    assert (there / "report.html").read_bytes() == b"new"


def test_a_file_is_on_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    path, synced, descriptors = tmp_path / "file", [], len(os.listdir("/proc/self/fd"))
    sync = os.fsync

    def record(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append((path.exists(), "folder" if is_folder else os.fstat(descriptor).st_size))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_atomically(path, b"new")
    assert synced == [(False, 3), (True, "folder")]  # the whole content, then the folder with the name
    assert len(os.listdir("/proc/self/fd")) == descriptors


# --- whatever is in the file -----------------------------------------------------------------------------------------


def with_header(content: bytes, header: bytes, length: int | None = None) -> bytes:
    """Another header in the place of the file's own."""
    end = 8 + int.from_bytes(content[:8], "little")
    return struct.pack("<Q", len(header) if length is None else length) + header + content[end:]


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "checkpoint.safetensors"
    save_checkpoint(path, {"w": torch.randn(2, 3), "n": torch.tensor(5), "h": torch.zeros(2).half()}, STATE)
    return path.read_bytes()


@given(data=st.data())
def test_any_bytes_are_a_checkpoint_or_told_as_damaged(small_file, tmp_path_factory, data):
    header = json.loads(small_file[8 : 8 + int.from_bytes(small_file[:8], "little")])
    lengths = st.none() | st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1])
    values = JSON | st.sampled_from(["F4", "U16", "C64", "F8_E8M0", [2**62, 4], [0, 2**62], [-1], [0, 4]])
    content = data.draw(
        st.binary(max_size=100)
        | damaged(small_file)
        | st.builds(with_header, st.just(small_file), json_near(header) | near(header, values).map(as_json), lengths)
    )
    path = tmp_path_factory.mktemp("fuzzed") / "c"
    path.write_bytes(content)
    try:
        tensors, state = load_checkpoint(path)
    except CheckpointError as error:
        assert_readable(error, str(path))
    else:
        assert state == STATE
        assert tensors.keys() == {"w", "n", "h"}


REPORT = {field.name: 1.0 for field in dataclasses.fields(EvalReport)} | {"epoch": 1, "images": 64}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    network = Generator(TrainConfig(width=4), channels=1, image_size=32).state_dict()
    return {f"average.{name}": tensor for name, tensor in network.items()}


@given(state=near({"config": TrainConfig(width=4).as_dict(), "reports": [REPORT, {**REPORT, "epoch": 2}], "notes": {}}))
@example(state={})
@example(state=[])
def test_a_whole_checkpoint_with_whatever_state_is_a_generator_or_a_named_error(tmp_path_factory, state, weights):
    path = tmp_path_factory.mktemp("fuzzed") / "c"
    text = json.dumps(state)
    metadata = {"state": text, "sha256": checkpoint._digest(weights, text)}
    path.write_bytes(save(weights, metadata=metadata))
    try:
        generator, found = load_generator(path, channels=1, image_size=32)
    except (CheckpointError, ConfigError) as error:
        assert_readable(error)
    else:
        assert len(found["reports"]) in (0, 1, 2)  # both may have been removed
        assert sum(p.numel() for p in generator.parameters()) > 0
