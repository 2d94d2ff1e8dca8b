"""16 bits and float32: what the numbers of images mean, from the files through training to the measured export."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import skimage.data
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage.exposure import rescale_intensity
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from model.common.errors import ConfigError
from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages, _unit
from model.data.image_folder import read_pictures
from model.data.image_formats import DataError
from model.data.image_reading import read_image
from model.data.image_sets import Images
from model.data.memory_mapped import PixelFiles
from model.data.pixel_format import EIGHT_BITS, PixelFormat
from model.denoise import Denoiser
from model.export import export
from model.export_quality import evaluate, quality
from model.picture_strip import draw_strip
from model.trainer import Trainer

CPU = torch.device("cpu")
DEPTHS = [
    EIGHT_BITS,
    PixelFormat("uint16"),
    PixelFormat("uint16", (0, 4095)),
    PixelFormat("uint16", (100.0, 1123.0)),
    PixelFormat("float32"),
    PixelFormat("float32", (-3.5, 250.0)),
]


def values_of(depth: PixelFormat, shape: tuple[int, ...] = (4096,)) -> np.ndarray:
    """From black to white, both among them."""
    values = np.linspace(depth.low, depth.high, int(np.prod(shape))).reshape(shape)
    return (values if depth.dtype == "float32" else np.rint(values)).astype(depth.dtype)


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", DEPTHS, ids=str)
def test_black_to_white_is_minus_one_to_one_as_scikit_image_scales_and_back(depth):
    values = values_of(depth, (70_000,))
    unit = depth.to_unit(values)
    assert unit.dtype == np.float32
    assert (unit[0], unit[-1]) == (-1, 1)
    reference = rescale_intensity(values.astype(np.float64), in_range=(depth.low, depth.high), out_range=(-1.0, 1.0))
    np.testing.assert_allclose(unit, reference, atol=3e-7)
    back = depth.from_unit(unit)
    assert back.dtype == values.dtype
    np.testing.assert_allclose(back, values, atol=0 if depth.dtype != "float32" else 3e-7 * (depth.high - depth.low))
    assert np.array_equal(depth.from_unit(np.array([-7.0, 7.0], np.float32)), values[[0, -1]])


@pytest.mark.parametrize("depth", DEPTHS, ids=str)
def test_a_training_sees_the_numbers_that_are_measured(depth):
    values = values_of(depth)
    pixels = torch.from_numpy(values.view(np.int16) if depth.dtype == "uint16" else values).clone()
    assert np.array_equal(_unit(pixels, depth).numpy(), depth.to_unit(values))


@given(low=st.floats(width=32), high=st.floats(width=32))
def test_any_two_numbers_are_a_range_that_can_be_reckoned_with_or_refused(low, high):
    try:
        depth = PixelFormat("float32", (low, high))
    except ConfigError:
        assert not (low < high and 1e-3 * max(abs(low), abs(high)) < high - low < 1e30)
    else:
        unit = depth.to_unit(np.array([low, high], np.float32))
        np.testing.assert_allclose(unit, [-1, 1], atol=3e-3)


@pytest.mark.parametrize(
    ("dtype", "values", "words"),
    [
        ("uint8", (0, 255), "range=0 255: is for 16-bit and float32 images, and not for 8-bit ones"),
        ("uint16", (-1, 4095), "range=-1 4095: of 16-bit images must be within 0 ... 65535"),
        ("uint16", (0, 65536), "range=0 65536: of 16-bit images must be within 0 ... 65535"),
        ("float32", (1, 0), "range=1 0: must be LOW HIGH"),
        ("float32", (0, float("nan")), "range=0 nan: must be LOW HIGH"),
    ],
)
def test_a_range_that_cannot_be_is_told_with_its_values(dtype, values, words):
    with pytest.raises(ConfigError, match=words):
        PixelFormat(dtype, values)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)], ids=["grey", "rgb"])
def test_a_colour_that_stands_for_transparency_becomes_alpha_at_16_bits_too(shape):
    pixels = (np.arange(np.prod(shape)).reshape(shape) * 1000 + 1).astype(np.uint16)
    written, key = imagecodecs.png_encode(pixels), np.atleast_1d(pixels[1, 2]).astype(">u2").tobytes()
    chunk = struct.pack(">I", len(key)) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    read = read_image(Path("a.png"), written[:33] + chunk + written[33:])  # behind the header
    assert np.array_equal(read.pixels, pixels)
    expected = np.full((4, 5), 65535)
    expected[1, 2] = 0
    assert np.array_equal(read.alpha, expected)


# --- folders --------------------------------------------------------------------------------------------------------


def photograph(name: str) -> np.ndarray:
    """(120, 150, 3) uint8."""
    return np.ascontiguousarray(getattr(skimage.data, name)()[40:280:2, 40:340:2])


def as_depth(pixels: np.ndarray, depth: PixelFormat) -> np.ndarray:
    """The same picture."""
    return depth.from_unit(EIGHT_BITS.to_unit(pixels))


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")
    else:
        path.write_bytes(imagecodecs.png_encode(pixels))


def folder_of(folder: Path, depth: PixelFormat, suffix: str, *, grey: bool = False, pairs: bool = False) -> Path:
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        pixels = photograph(name)[:, :, 1] if grey else photograph(name)
        for kind, offset in (("noisy", 9), ("clean", 0)) if pairs else (("", 0),):
            write(folder / kind / f"{name}{suffix}", as_depth(pixels ^ offset, depth))
    return folder


def placed(images: Images) -> DeviceImages:
    return DeviceImages.to_device(images, "gaussian:30", CPU, num_validation=4)


@pytest.mark.parametrize("grey", [True, False], ids=["grey", "rgb"])
@pytest.mark.parametrize(
    ("depth", "suffix"),
    [(PixelFormat("uint16"), ".png"), (PixelFormat("uint16"), ".tif"), (PixelFormat("float32"), ".tif")],
    ids=str,
)
def test_the_same_photographs_at_another_depth_make_the_same_training(tmp_path, depth, suffix, grey):
    config = TrainConfig(width=4, batch_size=4, images_per_epoch=16, epochs=1, dropout=0.0, precision="float32")
    reports, batches = [], []
    for name, of in (("eight", EIGHT_BITS), ("deep", depth)):
        folder = folder_of(tmp_path / name, of, ".png" if of == EIGHT_BITS else suffix, grey=grey)
        for split, stem in (("train", "astronaut"), ("train", "chelsea"), ("test", "coffee"), ("validation", "rocket")):
            (path,) = folder.glob(f"{stem}.*")
            (folder / split).mkdir(exist_ok=True)
            path.rename(folder / split / path.name)
        images = DataConfig(data=str(folder), crop=32).load()
        assert (images.pixel_format, images.shape[0]) == (of, 1 if grey else 3)
        batches.append(placed(images).batch(torch.arange(4), torch.Generator().manual_seed(3)))
        reports.append(Trainer(config, placed(images)).run_epoch())
    for eight, deep in zip(*batches, strict=True):
        assert torch.allclose(eight, deep, atol=1e-6)
    assert reports[0].psnr_db == pytest.approx(reports[1].psnr_db, abs=0.02)


@pytest.mark.parametrize("pairs", [False, True], ids=["gaussian", "real"])
@pytest.mark.parametrize("depth", DEPTHS[1:], ids=str)
def test_a_streamed_set_of_any_depth_is_the_same_to_the_bit_as_in_memory(tmp_path, depth, pairs):
    folder_of(tmp_path / "photographs", depth, ".tif", pairs=pairs)
    data = DataConfig(
        data=str(tmp_path / "photographs"), crop=32, range=depth.range, noise="real" if pairs else "gaussian:30"
    )
    expected, rows = data.load(), torch.arange(6)
    for in_memory in (0, 200_000):  # bytes: every image on its own; some at a time
        with PixelFiles(tmp_path / "runs") as store:
            store.in_memory = in_memory
            images = data.load(store)
            assert images.digest == expected.digest
            assert images.pixel_format == expected.pixel_format == depth
            assert np.array_equal(images.validation.clean, expected.validation.clean)
            batches = [
                DeviceImages.to_device(some, data.noise, CPU, num_validation=4).batch(
                    rows, torch.Generator().manual_seed(1)
                )
                for some in (images, expected)
            ]
            assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))


def ramp(dtype: str, number: int, top: float) -> np.ndarray:
    return np.linspace(0, top, 40 * (40 + number)).reshape(40, 40 + number).astype(dtype)


def _nan(folder: Path) -> str:
    pixels = ramp("float32", 9, 1)
    pixels[3, 4:7] = np.nan
    write(folder / "gap.tif", pixels)
    return "gap.tif: 3 values are NaN or infinite; put numbers there, such as a median's"


def _beyond(folder: Path) -> str:
    write(folder / "bright.tif", ramp("float32", 9, 250))
    return "bright.tif: has values from 0 to 250; the range of float32 is 0 ... 1; set another one with"


def _mixed(folder: Path) -> str:
    write(folder / "eight.png", ramp("uint8", 9, 255))
    return "1 images are 8-bit and 4 float32; all must be of one kind. 8-bit: eight.png"


@pytest.mark.parametrize("spoil", [_nan, _beyond, _mixed], ids=lambda spoil: spoil.__name__.strip("_"))
def test_float_images_that_would_make_nonsense_are_named(tmp_path, spoil: Callable[[Path], str]):
    for number in range(4):
        write(tmp_path / f"{number}.tif", ramp("float32", number, 1))
    expected = spoil(tmp_path)
    with pytest.raises(DataError) as caught:
        read_pictures(str(tmp_path), 32)
    assert expected in str(caught.value)


def test_a_range_is_for_deep_images_and_clips_what_is_beyond_it(tmp_path):
    for number in range(4):
        write(tmp_path / "deep" / f"{number}.png", ramp("uint16", number, 4095 + 100 * (number == 2)))
        write(tmp_path / "eight" / f"{number}.png", ramp("uint8", number, 255))
    found = read_pictures(str(tmp_path / "deep"), 32, value_range=(0, 4095))
    assert found.messages[0].startswith("2 train, 1 validation, 1 test images: grey, 16-bit, 0 ... 4095;")
    assert found.messages[1:] == ("values beyond the range are clipped to it (all are 0 ... 4195): 2.png",)
    assert max(picture.clean.max() for several in found.splits.values() for picture in several) == 4095
    (dark,) = read_pictures(str(tmp_path / "deep"), 32).messages[1:]
    assert dark.startswith("all values are 0 ... 4195, a small part of the range, by which noise is measured; set")
    for asked, words in (
        ((60_000, 65_000), "0.png: has values from 0 to 4095, all of them beyond --range 60000 65000"),
        ((0, 70_000), "0.png: range=0 70000: of 16-bit images must be within 0 ... 65535"),
    ):
        with pytest.raises(DataError, match=words):
            read_pictures(str(tmp_path / "deep"), 32, value_range=asked)
    with pytest.raises(DataError, match=r"0\.png: range=0 4095: is for 16-bit and float32 images, and not for 8-bit"):
        read_pictures(str(tmp_path / "eight"), 32, value_range=(0, 4095))


# --- the export -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "suffix"), [(PixelFormat("uint16", (0, 4095)), ".png"), (PixelFormat("float32"), ".tif")], ids=str
)
def test_an_export_has_its_range_on_record_and_figures_of_the_values_by_scikit_image(tmp_path, depth, suffix):
    data = DataConfig(
        data=str(folder_of(tmp_path / "photographs", depth, suffix)), noise="gaussian:10%", crop=32, range=depth.range
    )
    images, test = data.load(), data.load_test()[:3]
    config = TrainConfig(width=4, batch_size=4, images_per_epoch=8, epochs=1, dropout=0.0, precision="float32")
    trainer = Trainer(config, placed(images))
    trainer.run_epoch()
    trainer.save(tmp_path / "checkpoint")
    manifest = export(tmp_path / "checkpoint", tmp_path / "model", data=data, images=images, test=test, origin={})
    assert manifest["data"]["range"] == [depth.low, depth.high]
    assert manifest["model"]["depth"] == depth.dtype
    assert manifest["images"] == list(images.messages)
    assert f"({depth})" in (tmp_path / "model" / "README.md").read_text()
    denoiser = Denoiser(tmp_path / "model")
    assert denoiser.pixel_format(np.dtype(depth.dtype)) == depth.explicit
    if depth.dtype == "uint16":  # floats come as [-1, 1]
        pixels = test.clean[0].transpose(1, 2, 0)
        assert np.array_equal(denoiser(pixels), depth.from_unit(denoiser(depth.to_unit(pixels))))
    again = DataConfig.from_dict(denoiser.manifest["data"])
    assert again.load().digest == images.digest
    row = evaluate(denoiser, test, data.noise, "test")["denoised"]
    assert row == manifest["metrics"]["test"]["denoised"]
    noisy, _ = test.with_noise(data.noise, "test")
    denoised = depth.from_unit(denoiser.batch(noisy)).astype(np.float64)
    width = {"data_range": depth.high - depth.low}
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0, "full": True}
    psnr_db, ssim = [], []
    for truth, image in zip(test.clean.astype(np.float64), denoised, strict=True):
        psnr_db.append(peak_signal_noise_ratio(truth, image, **width))
        ssim.append(structural_similarity(truth, image, **width, **settings)[1][:, 5:-5, 5:-5].mean())
    assert row["psnr_db"] == pytest.approx(np.mean(psnr_db), abs=1e-6)
    assert row["ssim"] == pytest.approx(np.mean(ssim), abs=1e-6)


def test_figures_of_eight_bits_are_those_on_minus_one_to_one_as_ever():
    clean = EIGHT_BITS.to_unit(photograph("coffee").transpose(2, 0, 1)[None, :, :64, :64])
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 0.1, clean.shape).astype(np.float32), -1, 1)
    deep = quality(noisy, clean, PixelFormat("float32", (-1.0, 1.0)))
    assert quality(noisy, clean).ssim == pytest.approx(deep.ssim, abs=1e-5)
    assert quality(noisy, clean).psnr_db == pytest.approx(deep.psnr_db, abs=1e-4)
    assert quality(noisy, clean, PixelFormat("uint16")).psnr_db == pytest.approx(deep.psnr_db, abs=1e-3)


def test_a_strip_of_deep_images_is_for_the_eye(tmp_path):
    images = DataConfig(data=str(folder_of(tmp_path / "deep", PixelFormat("uint16"), ".png")), crop=32).load()
    noisy, clean = images.validation[:2].with_noise("gaussian:1%", "validation")
    draw_strip([noisy, clean], scale=1).save(tmp_path / "strip.png")
    with Image.open(tmp_path / "strip.png") as sheet:
        assert sheet.mode == "RGB"
        shown = np.asarray(sheet)[:32, 34:66].astype(int)
    assert np.abs(shown - images.validation.clean[0].transpose(1, 2, 0) / 257).max() <= 0.5
