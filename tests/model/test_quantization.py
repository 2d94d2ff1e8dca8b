import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

import model.export
from model.common.errors import ConfigError
from model.data.image_sets import NOISE_SEEDS, ImagePairs, Images, VariableSizeImages
from model.data.noise import parse_noise
from model.data.pixel_format import EIGHT_BITS
from model.denoise import Denoiser
from model.export import export
from model.export_quality import evaluate, network_table, verify_export
from model.quantization import (
    CALIBRATION_IMAGES,
    NetworkOptions,
    PrecisionLossError,
    calibration_images,
    check_loss,
)

REDUCED = ("fp16", "int8")


@contextmanager
def same_onnx(exported):
    """The one that is there: to write it again takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        copied = exported.folder / "generator.onnx"
        patch.setattr(model.export, "_write_onnx", lambda generator, path, shape: shutil.copyfile(copied, path))
        yield


@pytest.fixture(scope="module")
def folders(exported, tmp_path_factory):
    """An export in each precision."""
    folder = tmp_path_factory.mktemp("reduced")
    with same_onnx(exported):
        for name in REDUCED:
            export(exported.checkpoint, folder / name, **exported.arguments, network=NetworkOptions(precision=name))
    return {"fp32": exported.folder, **{name: folder / name for name in REDUCED}}


def weights(folder):
    """The initializers with the weights of convolutions, by the type of their numbers."""
    graph = onnx.load(folder / "generator.onnx").graph
    return [tensor for tensor in graph.initializer if len(tensor.dims) == 4]


@pytest.mark.parametrize("name", REDUCED)
def test_a_smaller_network_is_used_and_verified_as_the_float32_one(name, folders, mosaic):
    manifest = verify_export(folders[name])
    assert manifest["precision"] == name
    float32, smaller = (Denoiser(folders[each])(mosaic) for each in ("fp32", name))
    assert smaller.shape == mosaic.shape
    assert smaller.dtype == np.uint8
    difference = np.abs(smaller.astype(int) - float32)
    assert 0 < difference.mean() < 2
    session = onnxruntime.InferenceSession(folders[name] / "generator.onnx", providers=["CPUExecutionProvider"])
    ends = [(value.name, value.type) for value in (*session.get_inputs(), *session.get_outputs())]
    assert ends == [("noisy", "tensor(float)"), ("denoised", "tensor(float)")]


def test_fp16_has_weights_of_half_the_size(folders):
    assert {tensor.data_type for tensor in weights(folders["fp16"])} == {TensorProto.FLOAT16}
    sizes = [(folders[name] / "generator.onnx").stat().st_size for name in ("fp32", "fp16")]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.05)


def test_int8_has_weights_of_seven_bits_but_in_the_first_and_the_last_layer(folders):
    of_float32 = {tuple(tensor.dims) for tensor in weights(folders["fp32"])}
    by_type = {kind: [t for t in weights(folders["int8"]) if t.data_type == kind] for kind in (1, TensorProto.INT8)}
    assert {tuple(tensor.dims) for tensor in weights(folders["int8"])} == of_float32
    assert {tuple(t.dims) for t in by_type[1]} == {(8, 1, 4, 4), (16, 1, 4, 4)}  # one channel in, one channel out
    assert len(by_type[TensorProto.INT8]) == 8
    assert max(np.abs(numpy_helper.to_array(t).astype(int)).max() for t in by_type[TensorProto.INT8]) == 64
    sizes = [(folders[name] / "generator.onnx").stat().st_size for name in ("fp32", "int8")]
    assert sizes[1] < 0.3 * sizes[0]


@pytest.mark.parametrize("name", REDUCED)
def test_onnxs_own_reference_computes_the_same_images(name, folders, images):
    """From the file alone, without onnxruntime: what another runtime would give."""
    noisy, clean = images.validation[:4].with_noise("gaussian:30", "validation")
    (expected,) = ReferenceEvaluator(str(folders[name] / "generator.onnx")).run(None, {"noisy": noisy})
    measured = Denoiser(folders[name]).batch(noisy)
    assert np.abs(measured - expected).mean() < 0.005  # a step of 8 bits is 0.008
    assert np.abs(measured - clean).mean() > 0.02


@pytest.mark.parametrize("name", REDUCED)
def test_the_manifest_has_the_figures_of_both_networks_on_the_same_images(name, folders, exported, images, test_images):
    manifest = verify_export(folders[name])
    denoiser = Denoiser(folders[name])
    assert manifest["metrics"]["validation"] == evaluate(denoiser, images.validation, "gaussian:30", "validation")
    assert manifest["metrics"]["test"] == evaluate(denoiser, ImagePairs(test_images), "gaussian:30", "test")
    assert manifest["float32"]["metrics"] == exported.manifest["metrics"]
    assert manifest["float32"]["size_mb"] == exported.manifest["size_mb"]
    assert manifest["float32"]["precision"] == "fp32"
    before, after = (each["metrics"]["validation"]["denoised"]["psnr_db"] for each in (manifest["float32"], manifest))
    assert manifest["loss"] == {"psnr_db": before - after, "max_loss_db": 0.1}
    assert manifest["size_mb"] == (folders[name] / "generator.onnx").stat().st_size / 1e6
    table = network_table(manifest)
    assert f"| fp32 | {exported.manifest['size_mb']:.2f} |" in table
    assert f"| {name} | {manifest['size_mb']:.2f} | {manifest['latency']['median_ms']:.3g} |" in table
    change = f"loses {before - after:.3f}" if before - after >= 0.0005 else f"gains {max(after - before, 0.0):.3f}"
    assert f"{name} {change} dB" in table
    assert table in (folders[name] / "README.md").read_text()


def test_a_network_that_loses_more_than_it_may_is_refused_with_the_figures_and_nothing_is_written(exported, tmp_path):
    with same_onnx(exported), pytest.raises(PrecisionLossError) as refused:
        export(
            exported.checkpoint,
            tmp_path / "model",
            **{**exported.arguments, "test": None},
            network=NetworkOptions(precision="int8", max_loss_db=0.0001),
        )
    message = str(refused.value)
    float32 = exported.manifest["metrics"]["validation"]["denoised"]["psnr_db"]
    assert message.startswith("precision=int8: loses 0.0")
    assert f"dB instead of {float32:.3f}), above max_loss_db=0.0001. Nothing was written" in message
    assert "allow it with --max-loss-db 0.0" in message
    assert "or take --precision fp16" in message
    assert list(tmp_path.iterdir()) == []


def rows(psnr_db):
    return {"images": 5000, "denoised": {"psnr_db": psnr_db}}


@pytest.mark.parametrize(
    ("mine", "theirs", "is_refused"),
    [(28.2, 28.3, False), (28.19, 28.3, True), (28.4, 28.3, False), ("inf", "inf", False), (28.3, "inf", True)],
)
def test_the_limit_is_on_the_difference_of_psnr(mine, theirs, is_refused):
    if not is_refused:
        assert check_loss("int8", rows(mine), rows(theirs), 0.1 + 1e-9) <= 0.1 + 1e-9
        return
    with pytest.raises(PrecisionLossError):
        check_loss("int8", rows(mine), rows(theirs), 0.1 + 1e-9)


def test_a_loss_that_is_no_number_is_refused():
    with pytest.raises(PrecisionLossError):
        check_loss("fp16", rows("nan"), rows(28.3), 0.1)


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf"), "0.1", True])
def test_a_limit_is_a_finite_number_of_decibels(wrong):
    with pytest.raises(ConfigError, match=r"max_loss_db=.*: must be a number of dB, 0 or above, such as 0.1"):
        NetworkOptions(precision="int8", max_loss_db=wrong)


@pytest.mark.parametrize("name", ["FP16", "int4", None, ["int8"]])
def test_a_precision_is_one_that_there_is(name):
    with pytest.raises(ConfigError, match="precision="):
        NetworkOptions(precision=name)
    NetworkOptions(precision="int8", max_loss_db=0)


# --- calibration ----------------------------------------------------------------------------------------------------


def test_the_calibration_has_noisy_training_images_and_no_others(images: Images):
    """Those of validation are white here, and those of training black."""
    black = replace(
        images, train=np.zeros_like(images.train[:600]), validation=ImagePairs(np.full_like(images.train[:5], 255))
    )
    noisy = calibration_images(black, "gaussian:30")
    assert (noisy.shape, noisy.dtype) == ((CALIBRATION_IMAGES, 1, 32, 32), np.float32)
    expected = parse_noise("gaussian:30").fixed(-np.ones((600, 1, 32, 32), np.float32), seed=NOISE_SEEDS["train"])
    assert noisy.mean() == pytest.approx(expected.mean(), abs=1e-3)
    assert noisy.std() == pytest.approx(expected.std(), rel=0.01)
    assert np.array_equal(noisy, calibration_images(black, "gaussian:30"))


def test_the_calibration_of_pairs_has_crops_of_their_noisy_images():
    clean, noisy = np.zeros((40, 50), np.uint8), np.arange(2000, dtype=np.uint8).reshape(40, 50)
    train = VariableSizeImages(
        pixels=clean.ravel(), noisy=noisy.ravel(), tiles=np.array([[0, 40, 50]] * 6), channels=1, crop=16
    )
    validation = ImagePairs(np.zeros((1, 1, 16, 16), np.uint8), np.zeros((1, 1, 16, 16), np.uint8))
    found = calibration_images(Images(train=train, validation=validation), "real")
    assert found.shape == (6, 1, 16, 16)
    crops = np.lib.stride_tricks.sliding_window_view(EIGHT_BITS.to_unit(noisy), (16, 16)).reshape(-1, 16, 16)
    assert all((np.abs(crops - crop[0]).max(axis=(1, 2)) < 1e-6).any() for crop in found)
