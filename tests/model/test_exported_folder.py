import hashlib
import json
import math
import os
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fuzzing import assert_readable, json_near
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio

import model.export
from model.checkpoint import CheckpointError, load_checkpoint
from model.common.errors import ConfigError
from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.image_sets import NOISE_SEEDS, ImagePairs
from model.data.noise import parse_noise
from model.data.pixel_format import EIGHT_BITS
from model.denoise import MANIFEST, DenoiseError, Denoiser, read_manifest
from model.export import ExportError, check_target, export
from model.export_quality import evaluate, network_table, quality_table, verify_export
from model.generator import Generator
from model.latency import Latency
from model.picture_strip import draw_strip, to_uint8
from model.quantization import NetworkOptions

ROOT = Path(__file__).parents[2]
FILES = {"manifest.json", "generator.onnx", "generator.safetensors", "README.md", "strip.png"}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def copied(exported, tmp_path):
    """The exported folder, alone in another one."""
    return shutil.copytree(exported.folder, tmp_path / "out" / "model")


@pytest.fixture(scope="module")
def torch_generator(exported) -> Generator:
    config = TrainConfig.from_dict(exported.manifest["config"])
    generator = Generator(config, channels=1, image_size=32)
    generator.load_state_dict(load_file(exported.folder / "generator.safetensors"))
    return generator.eval()


@pytest.mark.parametrize("shape", [(1, 32, 32), (300, 32, 32), (2, 64, 96), (1, 192, 32)], ids=str)
def test_onnxruntime_equals_torch(shape, exported, torch_generator, all_test_images):
    number, height, width = shape
    rows, columns = height // 32, width // 32
    tiles = all_test_images[: number * rows * columns, 0].reshape(number, rows, columns, 32, 32)
    clean = EIGHT_BITS.to_unit(tiles.transpose(0, 1, 3, 2, 4).reshape(number, 1, height, width))
    noisy = parse_noise("gaussian:30").fixed(clean, seed=9)
    with torch.inference_mode():
        expected = torch_generator(torch.from_numpy(noisy)).numpy()
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(Denoiser(exported.folder).batch(noisy), expected, rtol=0, atol=1e-4)


def test_the_weights_are_the_moving_average(exported, trained):
    weights = load_file(exported.folder / "generator.safetensors")
    average = trained.gan.ema_generator.state_dict()
    assert weights.keys() == average.keys()
    assert all(torch.equal(weights[name], average[name]) for name in weights)


def test_the_folder_has_exactly_its_files_and_onnx_holds_its_weights_itself(exported):
    assert {path.name for path in exported.folder.iterdir()} == FILES
    graph = onnx.load(exported.folder / "generator.onnx", load_external_data=False).graph
    assert graph.initializer
    assert all(tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in graph.initializer)
    assert [value.name for value in (*graph.input, *graph.output)] == ["noisy", "denoised"]


def test_the_manifest_has_the_sha256_of_every_other_file(exported):
    digests = json.loads((exported.folder / MANIFEST).read_text())["files"]
    assert digests.keys() == FILES - {MANIFEST}
    for name, digest in digests.items():
        assert digest == hashlib.sha256((exported.folder / name).read_bytes()).hexdigest()


def test_the_manifest_tells_where_the_model_comes_from(exported, trained):
    manifest = json.loads((exported.folder / MANIFEST).read_text())
    assert manifest == exported.manifest
    assert manifest["origin"] == {"search": "first", "trial": 7, "epoch": 4}
    assert TrainConfig.from_dict(manifest["config"]) == trained.config
    assert manifest["model"]["parameters"] == sum(p.numel() for p in trained.gan.generator.parameters())
    assert manifest["data"] == {"data": "fashion-mnist", "noise": "gaussian:30", "crop": None, "range": None}
    assert manifest["versions"]["torch"] == torch.__version__


def test_measuring_the_folder_again_gives_the_manifests_figures_exactly(exported, images, test_images):
    denoiser = Denoiser(exported.folder)
    metrics = json.loads((exported.folder / MANIFEST).read_text())["metrics"]
    assert evaluate(denoiser, images.validation, "gaussian:30", "validation") == metrics["validation"]
    assert evaluate(denoiser, ImagePairs(test_images), "gaussian:30", "test") == metrics["test"]
    assert metrics["test"]["denoised"]["psnr_db"] > metrics["test"]["noisy"]["psnr_db"] + 1
    assert metrics["test"]["ground_truth"] == {
        "l1": 0.0,
        "ssim": 1.0,
        "psnr_db": "inf",
        "haarpsi": pytest.approx(1, abs=1e-6),
    }
    assert metrics["test"]["images"] == len(test_images)


def test_the_trainers_last_report_is_what_the_export_measures(exported, trained):
    measured, report = exported.manifest["metrics"]["validation"], trained.reports[-1]
    assert measured["noisy"]["psnr_db"] == pytest.approx(report.noisy_psnr_db, abs=1e-3)
    for name in ("l1", "ssim", "psnr_db", "haarpsi"):
        assert measured["denoised"][name] == pytest.approx(getattr(report, name), abs=1e-3)


def test_the_model_card_has_the_figures_and_the_strip_the_test_images(exported, test_images):
    card = (exported.folder / "README.md").read_text()
    test = exported.manifest["metrics"]["test"]["denoised"]
    assert f"| Denoised | {test['l1']:.4f} | {test['ssim']:.4f} | {test['psnr_db']:.2f} |" in card
    assert "noise `gaussian:30` (STD: on the scale of 8-bit images) from" in card
    assert "DOES NOT BEAT" in card  # of a model this small it must say so
    assert "![Input, ground truth, predicted](strip.png)" in card
    assert "It takes grey images. Each channel of a colour image is denoised separately." in card
    clean = EIGHT_BITS.to_unit(test_images[:6])
    noisy = parse_noise("gaussian:30").fixed(clean, seed=NOISE_SEEDS["test"])
    expected = draw_strip([noisy, clean, Denoiser(exported.folder).batch(noisy)])
    with Image.open(exported.folder / "strip.png") as picture:
        assert picture.size == ((3 * 34 - 2) * 3, (6 * 34 - 2) * 3)
        assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_the_manifest_and_the_model_card_have_size_and_latency_of_the_file(exported):
    latency = Latency.from_dict(exported.manifest["latency"])
    assert (latency.size, latency.threads, latency.onnxruntime) == (32, 1, onnxruntime.__version__)
    megabytes = (exported.folder / "generator.onnx").stat().st_size / 1e6
    assert (exported.manifest["size_mb"], exported.manifest["precision"]) == (megabytes, "fp32")
    card = (exported.folder / "README.md").read_text()
    psnr = exported.manifest["metrics"]["test"]["denoised"]["psnr_db"]
    assert f"| fp32 | {megabytes:.2f} | {latency.median_ms:.3g} | {latency.p95_ms:.3g} | {psnr:.2f} |" in card
    assert f"32x32 pixels, {latency.runs} runs, 1 thread" in card


def test_a_latency_is_measured_as_asked_or_refused_before_anything_is_written(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(model.export, "_write_onnx", lambda generator, path, shape: copy_onnx(exported, path))
    few = {**exported.arguments, "test": None}
    for wrong, told in (
        ({"latency_size": 48}, "size=48: must be a multiple of 32"),
        ({"latency_threads": 0}, "threads=0: must be at least 1"),
        ({"precision": "int4"}, "precision='int4': Did you mean int8"),
    ):
        with pytest.raises(ConfigError, match=told):
            export(exported.checkpoint, tmp_path / "model", **few, network=NetworkOptions(**wrong))
    assert list(tmp_path.iterdir()) == []
    manifest = export(
        exported.checkpoint, tmp_path / "model", **few, network=NetworkOptions(latency_size=64, latency_threads=2)
    )
    assert (manifest["latency"]["size"], manifest["latency"]["threads"]) == (64, 2)


def test_the_network_says_nothing_of_the_machine_that_exported_it(exported):
    """torch's exporter notes the files of the program, with their paths, beside each operator."""
    content = (exported.folder / "generator.onnx").read_bytes()
    assert b"stack_trace" not in content
    assert str(ROOT).encode() not in content


def test_a_strip_shows_columns_side_by_side_with_white_between(images):
    left, right = EIGHT_BITS.to_unit(images.validation.clean[:2]), EIGHT_BITS.to_unit(images.validation.clean[2:4])
    sheet = np.asarray(draw_strip([left, right], scale=1))
    assert sheet.shape == (66, 66)
    assert np.array_equal(sheet[:32, :32], to_uint8(left[0, 0]))
    assert np.array_equal(sheet[34:, 34:], to_uint8(right[1, 0]))
    assert (sheet[32:34] == 255).all()
    assert (sheet[:, 32:34] == 255).all()
    colour = draw_strip([np.repeat(left, 3, axis=1)], scale=3)
    assert (colour.mode, colour.size) == ("RGB", (96, 198))


def copy_onnx(exported, path) -> None:
    """The one that is there: to write it again takes seconds."""
    shutil.copyfile(exported.folder / path.name, path)


def test_an_export_replaces_an_older_one_and_can_carry_the_checkpoint(exported, copied, monkeypatch):
    monkeypatch.setattr(model.export, "_write_onnx", lambda generator, path, shape: copy_onnx(exported, path))
    (copied / "generator.onnx").write_bytes(b"old")
    manifest = export(exported.checkpoint, copied, **{**exported.arguments, "test": None}, trainable=True)
    assert {path.name for path in copied.iterdir()} == {*FILES, "checkpoint.safetensors"}
    assert (copied / "checkpoint.safetensors").read_bytes() == exported.checkpoint.read_bytes()
    assert manifest["metrics"]["test"] is None
    assert manifest["metrics"]["validation"] == exported.manifest["metrics"]["validation"]
    assert "slides' numbers" not in (copied / "README.md").read_text()
    assert Denoiser(copied).manifest == manifest
    assert list(copied.parent.iterdir()) == [copied]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o077, 0o700)])
def test_an_export_is_readable_by_whom_the_umask_lets(umask, mode, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(model.export, "_write_onnx", lambda generator, path, shape: copy_onnx(exported, path))
    before, folder = os.umask(umask), tmp_path / "not" / "there" / "model"
    try:
        export(exported.checkpoint, folder, **{**exported.arguments, "test": None})
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == mode
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {mode & 0o666}


@pytest.mark.parametrize("foreign", [{"notes.txt": "mine"}, {"manifest.json": '{"name": "a web app"}', "app.js": ""}])
def test_an_export_never_overwrites_a_folder_with_other_files(foreign, exported, tmp_path):
    for name, text in foreign.items():
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="exists and is not an export"):
        export(exported.checkpoint, tmp_path, **exported.arguments)
    assert contents(tmp_path) == before


def test_an_export_with_a_file_of_someone_else_in_it_is_not_overwritten(exported, copied):
    (copied / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not an export"):
        export(exported.checkpoint, copied, **exported.arguments)
    assert (copied / "notes.txt").read_text() == "mine"


def test_an_empty_folder_may_be_exported_to(tmp_path):
    check_target(tmp_path)


def test_an_export_never_overwrites_a_file(exported, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="file: is a file"):
        export(exported.checkpoint, path, **exported.arguments)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("mistake", [1.0, math.nan])
def test_an_export_that_is_not_what_was_trained_leaves_the_old_one_and_no_part(mistake, exported, copied, monkeypatch):
    before = contents(copied)

    def mistaken(generator, path, shape):
        copy_onnx(exported, path)
        generator.last.bias.data.add_(mistake)  # what the file should be now

    monkeypatch.setattr(model.export, "_write_onnx", mistaken)
    with pytest.raises(ExportError, match="differs from torch's"):
        export(exported.checkpoint, copied, **exported.arguments)
    assert contents(copied) == before
    assert list(copied.parent.iterdir()) == [copied]


def test_a_damaged_checkpoint_is_not_exported(exported, tmp_path):
    damaged = tmp_path / "checkpoint.safetensors"
    damaged.write_bytes(exported.checkpoint.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        export(damaged, tmp_path / "model", **exported.arguments)
    assert list(tmp_path.iterdir()) == [damaged]
    assert load_checkpoint(exported.checkpoint)[1]["reports"]


def test_the_figures_of_the_strip_are_those_of_its_own_pictures(exported):
    sheet = np.asarray(Image.open(exported.folder / "strip.png"))[1::3, 1::3].astype(np.float64) / 127.5 - 1
    noisy, clean = (np.stack([sheet[y : y + 32, x : x + 32] for y in range(0, 6 * 34, 34)]) for x in (0, 34))
    denoised = Denoiser(exported.folder).batch(noisy[:, None].astype(np.float32))[:, 0]
    told = exported.manifest["strip"]
    assert told["images"] == 6
    assert told["l1"] == pytest.approx(np.abs(denoised - clean).mean(), rel=1e-5)
    psnr = [peak_signal_noise_ratio(a, b, data_range=2) for a, b in zip(clean, denoised, strict=True)]
    assert told["psnr_db"] == pytest.approx(np.mean(psnr), rel=1e-5)


def test_an_export_that_arrived_as_it_left_is_verified(copied, exported):
    assert verify_export(copied) == exported.manifest


def test_a_folder_with_more_in_it_than_was_exported_is_noticed(copied, tmp_path):
    (copied / "more").symlink_to(tmp_path)
    with pytest.raises(DenoiseError, match="more: is not in the manifest"):
        verify_export(copied)


@pytest.mark.parametrize("name", sorted(FILES - {MANIFEST}))
def test_every_file_is_held_to_its_digest(name, copied):
    content, manifest = (copied / name).read_bytes(), read_manifest(copied)
    (copied / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DenoiseError, match=f"{name}: its SHA-256 differs from the manifest's"):
        verify_export(copied)
    (copied / name).write_bytes(content)
    for no_digest in ("", manifest["files"][name][:8]):
        changed = {**manifest, "files": {**manifest["files"], name: no_digest}}
        (copied / MANIFEST).write_text(json.dumps(changed))
        with pytest.raises(DenoiseError, match=f"{name}: its SHA-256 differs from the manifest's"):
            verify_export(copied)


@pytest.mark.parametrize("part", ["files", "model", "origin", "data", "metrics"])
def test_a_manifest_that_lacks_a_part_is_named_with_it(part, copied):
    manifest = read_manifest(copied)
    del manifest[part]
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DenoiseError, match=rf"manifest\.json: damaged or not ours \(its {part}\)"):
        read_manifest(copied)


def test_a_manifests_model_has_sizes_that_can_be_used(copied):
    manifest = read_manifest(copied)
    for sizes, is_right in (
        ({"image_size": 2, "padding": 0}, True),
        ({"image_size": 1, "padding": 0}, False),
        ({"image_size": 4096}, True),
        ({"image_size": 4097}, False),
        ({"padding": 15}, True),
        ({"padding": 16}, False),  # of 32: nothing inside
        ({"padding": -1}, False),
        ({"channels": 3}, True),
        ({"channels": 2}, False),
    ):
        (copied / MANIFEST).write_text(json.dumps({**manifest, "model": {**manifest["model"], **sizes}}))
        with nullcontext() if is_right else pytest.raises(DenoiseError, match=r"not ours \(its model\)"):
            read_manifest(copied)


@pytest.mark.parametrize(
    "broken",
    [
        {"latency": {}},
        {"latency": [1]},
        {"precision": 3},
        {"size_mb": "2"},
        {"float32": {"metrics": {}}},
        {"loss": {"psnr_db": None}},
    ],
    ids=str,
)
def test_a_manifest_with_a_broken_latency_is_named_and_an_old_one_has_none(broken, copied):
    manifest = read_manifest(copied)
    part = next(iter(broken if broken.keys() & {"float32", "loss"} else ["latency"]))
    (copied / MANIFEST).write_text(json.dumps(manifest | broken))
    with pytest.raises(DenoiseError, match=rf"manifest\.json: damaged or not ours \(its {part}\)"):
        read_manifest(copied)
    old = {name: value for name, value in manifest.items() if name not in ("latency", "precision", "size_mb")}
    (copied / MANIFEST).write_text(json.dumps(old))
    assert network_table(verify_export(copied)) == ""


@pytest.mark.parametrize("multiple", [0, -32, "32", 1.5])
def test_a_manifests_size_multiple_is_a_number_of_pixels(multiple, copied):
    manifest = read_manifest(copied)
    (copied / MANIFEST).write_text(json.dumps({**manifest, "model": {**manifest["model"], "size_multiple": multiple}}))
    with pytest.raises(DenoiseError, match=r"not ours \(its model\)"):
        read_manifest(copied)


@pytest.mark.parametrize("name", ["", "..", "../x", "/x", "x/y", MANIFEST])
def test_a_manifest_names_files_of_its_own_folder_alone(name, copied):
    manifest = read_manifest(copied)
    manifest["files"][name] = ""
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DenoiseError, match=r"damaged or not ours \(its files\)"):
        read_manifest(copied)


@pytest.mark.parametrize("part", ["model", "strip"])
def test_a_manifest_that_names_a_file_without_a_digest_is_damaged(part, copied):
    manifest = read_manifest(copied)
    manifest[part]["file"] = "other"
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DenoiseError, match=r"damaged or not ours \(its file 'other'\)"):
        read_manifest(copied)


@pytest.mark.parametrize("name", ["strip.png", MANIFEST])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(name, copied):
    (copied / name).unlink()
    os.mkfifo(copied / name)
    with pytest.raises(DenoiseError, match=f"{name}: .*not a file"):
        verify_export(copied)


def test_figures_that_are_no_numbers_are_not_borne_out(copied):
    manifest = read_manifest(copied)
    manifest["strip"]["psnr_db"] = "nan"
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DenoiseError, match="figures on this machine differ from those of its export: psnr_db"):
        verify_export(copied)


def test_an_older_export_without_haarpsi_is_verified_by_its_other_figures(copied):
    manifest = read_manifest(copied)
    rows = [rows[name] for rows in manifest["metrics"].values() for name in ("noisy", "denoised", "ground_truth")]
    for row in (*rows, manifest["strip"]):
        del row["haarpsi"]
    (copied / MANIFEST).write_text(json.dumps(manifest))
    assert "HaarPSI" not in quality_table(verify_export(copied)["metrics"])
    manifest["strip"]["ssim"] -= 0.01
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DenoiseError, match="figures on this machine differ from those of its export: ssim"):
        verify_export(copied)


@pytest.mark.parametrize("value", ["high", None, True])
def test_a_haarpsi_that_is_no_number_is_damage(value, copied):
    manifest = read_manifest(copied)
    manifest["metrics"]["test"]["denoised"]["haarpsi"] = value
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DenoiseError, match="its metrics"):
        read_manifest(copied)


def test_another_model_in_the_place_of_the_measured_one_is_noticed_though_its_digest_is_right(copied):
    network = onnx.load(copied / "generator.onnx")
    weights = next(tensor for tensor in network.graph.initializer if len(tensor.dims) == 4)
    weights.raw_data = bytes(len(weights.raw_data))
    onnx.save(network, copied / "generator.onnx")
    manifest = read_manifest(copied)
    manifest["files"]["generator.onnx"] = hashlib.sha256((copied / "generator.onnx").read_bytes()).hexdigest()
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DenoiseError, match="figures on this machine differ from those of its export"):
        verify_export(copied)


@pytest.mark.parametrize("size", [(102, 300), (24, 6)])
def test_a_picture_that_is_no_exports_is_named_though_its_digest_is_right(size, copied):
    """Of no such rows, or of no columns."""
    Image.new("L", size).save(copied / "strip.png")
    manifest = read_manifest(copied)
    manifest["files"]["strip.png"] = hashlib.sha256((copied / "strip.png").read_bytes()).hexdigest()
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DenoiseError, match=r"strip\.png: is not the picture strip of an export"):
        verify_export(copied)


# --- whatever is in it -----------------------------------------------------------------------------------------------


@given(data=st.data())
def test_any_manifest_is_one_that_can_be_used_or_a_named_mistake(exported, tmp_path_factory, data):
    content = data.draw(json_near(exported.manifest), "manifest")
    folder = tmp_path_factory.mktemp("fuzzed") / "model"
    shutil.copytree(exported.folder, folder)
    (folder / MANIFEST).write_bytes(content)
    try:
        manifest = verify_export(folder)
        assert Denoiser(folder)(np.zeros((40, 33), np.uint8)).shape == (40, 33)
        quality_table(manifest["metrics"])
        network_table(manifest)
        DataConfig.from_dict(manifest["data"])
    except ConfigError as error:
        assert_readable(error)
    with suppress(ConfigError):
        check_target(folder)
    assert {path.name for path in folder.iterdir()} == FILES
