"""Your own images: photographs that scikit-image ships, in folders of every layout, whole and damaged."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import tifffile
import torch
from fuzzing import assert_readable
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from model.common.errors import ConfigError
from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.data.image_folder import read_pictures
from model.data.image_formats import DataError
from model.data.image_reading import MAX_BYTES
from model.data.image_sets import Images
from model.data.pictures import crop_grid
from model.denoise import Denoiser
from model.export import export
from model.export_quality import evaluate
from model.trainer import Trainer

CPU = torch.device("cpu")
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


@pytest.fixture(scope="session")
def photographs() -> dict[str, np.ndarray]:
    """RGB, (H, W, 3) uint8, of different sizes: halved, which keeps the tests quick."""
    return {name: np.ascontiguousarray(getattr(skimage.data, name)()[::2, ::2]) for name in PHOTOGRAPHS}


@pytest.fixture
def folder(tmp_path: Path, photographs: dict[str, np.ndarray]) -> Path:
    """All of them, in one folder."""
    for name, pixels in photographs.items():
        save(pixels, tmp_path / "photographs" / f"{name}.png")
    return tmp_path / "photographs"


def save(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def noised(pixels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 25, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def names(folder: Path, crop: int = 32) -> dict[str, list[str]]:
    return {
        split: sorted(p.name for p in several) for split, several in read_pictures(str(folder), crop).splits.items()
    }


# --- layouts --------------------------------------------------------------------------------------------------------


def test_a_folder_of_images_is_split_by_content_whatever_its_files_are_called(folder):
    before = names(folder)
    assert {split: len(several) for split, several in before.items()} == {"train": 2, "validation": 1, "test": 1}
    for path in list(folder.iterdir()):
        path.rename(path.with_name(f"other-{path.name}"))
    assert names(folder) == {split: [f"other-{name}" for name in several] for split, several in before.items()}


def test_the_owners_split_is_kept(folder):
    for split, name in (("train", "chelsea"), ("train", "coffee"), ("validation", "rocket"), ("test", "astronaut")):
        (folder / split).mkdir(exist_ok=True)
        (folder / f"{name}.png").rename(folder / split / f"{name}.png")
    assert names(folder) == {
        "train": ["chelsea.png", "coffee.png"],
        "validation": ["rocket.png"],
        "test": ["astronaut.png"],
    }


def test_copies_of_an_image_count_once(folder):
    (folder / "copy.png").write_bytes((folder / "rocket.png").read_bytes())
    Image.open(folder / "rocket.png").save(folder / "copy.tiff")  # other bytes, the same pixels
    assert sum(map(len, names(folder).values())) == 4


def test_pairs_are_taken_as_they_are(tmp_path, photographs):
    for name, pixels in photographs.items():
        save(pixels, tmp_path / "clean" / f"{name}.png")
        save(noised(pixels), tmp_path / "noisy" / f"{name}.png")
    config = DataConfig(data=str(tmp_path), noise="real", crop=32)
    images, test = config.load(), config.load_test()
    noisy, clean = test.with_noise("real", "test")
    assert 0.1 < np.std(noisy - clean) < 25 / 127.5
    placed = DeviceImages.to_device(images, "real", CPU, num_validation=10)
    noisy_batch, clean_batch = placed.batch(torch.arange(8), torch.Generator().manual_seed(0))
    assert 0.1 < (noisy_batch - clean_batch).std().item() < 25 / 127.5  # no noise is added, and crops fit each other


def test_alpha_is_dropped_and_grey_stays_grey(tmp_path, photographs):
    for name, pixels in photographs.items():
        grey = pixels.mean(axis=2).astype(np.uint8)
        save(np.dstack([grey, np.full_like(grey, 7)]), tmp_path / f"{name}.png")
    pictures = read_pictures(str(tmp_path), 32).splits
    assert {picture.clean.shape[0] for several in pictures.values() for picture in several} == {1}


# What a search of an earlier version has on its record (the first 16 digits), and the test images that it measured.
LAYOUTS = {
    "a pool": (["{}.png"], "f0fa276b0ef54772", "fbbd60a12634633e"),
    "a pool in folders": (["b/{}.png", "a/c/{}.png", "{}.png"], "f0fa276b0ef54772", "fbbd60a12634633e"),
    "all in train/": (["train/{}.png"], "f0fa276b0ef54772", "fbbd60a12634633e"),
    "train/ and test/": (
        ["train/{}.png", "test/{}.png", "train/more/{}.png"], "8e907e841fd57c9e", "34d0d340426813d4"
    ),
    "three splits": (
        ["train/{}.png", "test/{}.png", "validation/{}.png"], "982cc54486243f67", "34d0d340426813d4"
    ),
    "pairs": (["KIND/{}.png", "KIND/more/{}.png"], "f29f334e778fa9ae", "fbbd60a12634633e"),
    "pairs in splits": (
        ["train/KIND/{}.png", "test/KIND/{}.png", "train/KIND/more/{}.png"], "acb0cbbb6be38e2d", "34d0d340426813d4"
    ),
}  # fmt: skip


def spread(folder: Path, forms: list[str], picture: Callable[[int, int], np.ndarray], count: int = 12) -> Path:
    """Pictures by their number and an offset of their greys, PNG or TIFF, in the places of the forms by turns."""
    for number in range(count):
        path = forms[number % len(forms)].format(number)
        for kind in ("noisy", "clean") if "KIND" in path else ("",):
            place = folder / path.replace("KIND", kind)
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = picture(number, 5 * (kind == "noisy"))
            if place.suffix == ".tif":
                tifffile.imwrite(place, pixels)
            else:
                save(pixels, place)
    return folder


def slope(number: int, offset: int = 0) -> np.ndarray:
    """(40, 36 + number) uint8."""
    row, column = np.mgrid[0:40, 0 : 36 + number]
    return ((7 * row + 3 * column + 11 * number + offset) % 256).astype(np.uint8)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_search_that_began_with_an_earlier_version_has_the_same_images_in_the_same_splits(tmp_path, name):
    forms, digest, test_digest = LAYOUTS[name]
    data = DataConfig(
        data=str(spread(tmp_path, forms, slope)), crop=16, noise="real" if "pairs" in name else "gaussian:30"
    )
    assert data.load().digest[:16] == digest
    assert hashlib.sha256(data.load_test().clean.tobytes()).hexdigest()[:16] == test_digest


@pytest.mark.parametrize(
    ("forms", "expected"),
    [
        (["{}.png"], "10, 1, 1: grey, 8-bit; validation and test are a tenth each, chosen by content out of all"),
        (
            ["b/{}.png", "a/{}.png"],
            "10, 1, 1: grey, 8-bit; validation and test are a tenth each, chosen by content out of all from a/, b/",
        ),
        (["Train/{}.png", "VAL/{}.png"], "5, 6, 1: grey, 8-bit; test: a tenth of Train/, chosen by content"),
        (["train/{}.png", "Testing/{}.png"], "5, 1, 6: grey, 8-bit; validation: a tenth of train/, chosen by content"),
        (["train/{}.png", "test/{}.png", "valid/{}.png"], "4, 4, 4: grey, 8-bit; as its folders say"),
        (
            ["KIND/{}.png"],
            "10, 1, 1: grey pairs, noisy and clean, 8-bit; validation and test are a tenth each, chosen by content out "
            "of all",
        ),
    ],
)
def test_it_is_told_how_many_images_each_split_has_and_why(tmp_path, forms, expected):
    counts, kind = expected.split(": ", 1)
    train, validation, test = counts.split(", ")
    (told,) = read_pictures(str(spread(tmp_path, forms, slope)), 16).messages
    assert told == f"{train} train, {validation} validation, {test} test images: {kind}"


def test_noisy_and_clean_in_capitals_are_no_images_to_be_pooled(tmp_path):
    spread(tmp_path, ["Clean/{}.png", "Noisy/{}.png"], slope)
    with pytest.raises(DataError, match=r"Clean/0\.png: has no partner in noisy/"):
        read_pictures(str(tmp_path), 16)


def test_whatever_is_left_out_is_told_with_the_reason(folder, photographs):
    (folder / "notes.txt").write_text("")
    (folder / "._rocket.png").write_bytes(b"\x00\x05\x16\x07")
    (folder / "Thumbs.db").write_bytes(b"")
    (folder / ".cache").mkdir()
    (folder / "raw.dng").write_bytes(b"")
    (folder / "inside").mkdir()
    (folder / "again").symlink_to(folder / "inside")
    (folder / "copy.png").write_bytes((folder / "rocket.png").read_bytes())
    told = read_pictures(str(folder), 32).messages
    assert told[1:] == (
        "skipped, for their names: .dng: 1 (raw.dng); .txt: 1 (notes.txt); "
        "hidden: 3 (.cache/, ._rocket.png, Thumbs.db); links to folders: 1 (again/)",
        "copies of other images, which count once: 1",
    )
    (folder / "empty").mkdir()
    (folder / "empty" / "raw.dng").write_bytes(b"")
    with pytest.raises(DataError, match=r"has no images \(.*\nskipped, for their names: .dng: 1 \(raw.dng\)"):
        read_pictures(str(folder / "empty"), 32)


def test_pairs_without_a_difference_are_named_and_a_set_of_them_is_refused(tmp_path):
    spread(tmp_path, ["KIND/{}.png"], slope)
    for number in (3, 4):
        save(slope(number), tmp_path / "noisy" / f"{number}.png")
    assert read_pictures(str(tmp_path), 16).messages[1:] == (
        "noisy and clean are the same, pixel by pixel: 3.png, 4.png",
    )
    for number in range(12):
        save(slope(number), tmp_path / "noisy" / f"{number}.png")
    with pytest.raises(DataError, match="all noisy images equal their clean ones"):
        DataConfig(data=str(tmp_path), crop=16, noise="real").load()


@pytest.mark.parametrize("form", ["KIND/{}.png", "train/KIND/{}.png"])
def test_all_noisy_images_of_a_clean_one_are_used_and_stay_together(tmp_path, form):
    """As microscopes take them: several frames of one scene, whose mean is the clean image of each."""
    for scene in range(11):
        for frame in range(4):
            name = f"scene{scene}-frame{frame}"
            save(slope(scene), tmp_path / form.replace("KIND", "clean").format(name))
            save(slope(scene, 5 * frame + 3), tmp_path / form.replace("KIND", "noisy").format(name))
    if "train" in form:
        for kind, offset in (("clean", 0), ("noisy", 9)):
            save(slope(11, offset), tmp_path / "test" / kind / "other.png")
    found = read_pictures(str(tmp_path), 16)
    scenes = {split: {name.partition("-")[0] for name in several} for split, several in names(tmp_path, 16).items()}
    counts = {split: len(several) for split, several in found.splits.items()}
    assert sum(counts.values()) == 44 + ("train" in form)
    assert counts["validation"] == 4
    assert len(set().union(*scenes.values())) == sum(map(len, scenes.values()))  # no scene is in two splits
    assert len(found.messages) == 1


def test_a_folder_that_cannot_be_opened_or_leads_elsewhere_is_not_passed_over(folder, monkeypatch):
    (folder / "more").mkdir()
    (folder / "outside").symlink_to(folder.parent)
    with pytest.raises(DataError, match=r"links that leave the folder: .*outside"):
        read_pictures(str(folder), 32)
    (folder / "outside").unlink()
    scandir = os.scandir

    def closed(path: str) -> object:
        if Path(path).name == "more":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)  # the tests run as root, who may open everything
    with pytest.raises(DataError, match="more: Permission denied"):
        read_pictures(str(folder), 32)


# --- what is cut out of them ----------------------------------------------------------------------------------------


def test_validation_crops_tile_the_images_and_are_always_the_same(folder):
    pictures = read_pictures(str(folder), 32).splits["test"]
    crops, noisy = crop_grid(pictures, 32)
    height, width = pictures[0].clean.shape[1:]
    assert noisy is None
    assert crops.shape == ((height // 32) * (width // 32), 3, 32, 32)
    tiles = {
        pictures[0].clean[:, y : y + 32, x : x + 32].tobytes()
        for y in range(0, height - 31, 32)
        for x in range(0, width - 31, 32)
    }
    assert {crop.tobytes() for crop in crops} == tiles
    assert np.array_equal(crop_grid(pictures, 32)[0], crops)


@given(
    sizes=st.lists(st.tuples(st.integers(16, 40), st.integers(16, 40)), min_size=1, max_size=4),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
def test_every_training_crop_is_a_part_of_its_image(sizes, channels, seed):
    from model.data.image_sets import ImagePairs, VariableSizeImages  # noqa: PLC0415
    from model.data.pictures import Picture  # noqa: PLC0415

    # Each pixel tells its image, row, column and channel.
    pictures = []
    for number, (height, width) in enumerate(sizes):
        row, column, plane = np.mgrid[0:height, 0:width, 0:channels].transpose(0, 3, 1, 2)
        pictures.append(Picture(str(number), (60 * number + row + column + 7 * plane).astype(np.uint8)))
    ragged = VariableSizeImages.from_pictures(pictures, 16)
    images = Images(train=ragged, validation=ImagePairs(*crop_grid(pictures, 16)))
    placed = DeviceImages.to_device(images, "gaussian:1", CPU, num_validation=4)
    assert len(ragged) == sum((height // 16) * (width // 16) for height, width in sizes)
    _, clean = placed.batch(torch.arange(len(ragged)), torch.Generator().manual_seed(seed))
    crops = torch.round((clean + 1) * 127.5).to(torch.uint8).numpy()
    parts = [
        {picture.clean[:, y : y + 16, x : x + 16].tobytes() for y in range(h - 15) for x in range(w - 15)}
        for picture in pictures
        for h, w in [picture.clean.shape[1:]]
    ]
    owners = [n for n, (height, width) in enumerate(sizes) for _ in range((height // 16) * (width // 16))]
    assert all(crop.tobytes() in parts[owner] for crop, owner in zip(crops, owners, strict=True))


def test_crops_come_from_everywhere_in_an_image_borders_included(folder):
    images = DataConfig(data=str(folder), crop=32).load()
    placed = DeviceImages.to_device(images, "gaussian:1", CPU, num_validation=4)
    placed.train.pixels.zero_()
    begin, height, width = placed.train.tiles[0].tolist()
    red = placed.train.pixels[begin : begin + height * width].view(height, width)
    red[[0, -1]] = red[:, [0, -1]] = 255
    _, clean = placed.batch(torch.zeros(5_000, dtype=torch.long), torch.Generator().manual_seed(0))
    top, bottom, left, right = (
        edge.amin(dim=1) > 0 for edge in (clean[:, 0, 0], clean[:, 0, -1], clean[:, 0, :, 0], clean[:, 0, :, -1])
    )
    assert all(edge.any().item() for edge in (top, bottom, left, right))
    assert 1 / 2 < top.float().mean().item() * (height - 31) < 2  # all rows are equally likely
    assert 1 / 2 < right.float().mean().item() * (width - 31) < 2


# --- training on them -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("crop", "noise"), [(16, "real"), (128, "gaussian:30")])
def test_photographs_are_trained_on_and_exported_with_networks_as_deep_as_the_crop(folder, tmp_path, crop, noise):
    if noise == "real":
        for path in list(folder.iterdir()):
            pixels = np.array(Image.open(path))
            save(noised(pixels), folder / "noisy" / path.name)
            path.rename(save(pixels, folder / "clean" / path.name))
    data = DataConfig(data=str(folder), noise=noise, crop=crop)
    images = data.load()
    config = TrainConfig(width=4, batch_size=4, images_per_epoch=8, epochs=1, dropout=0.0, precision="float32")
    trainer = Trainer(config, DeviceImages.to_device(images, data.noise, CPU, num_validation=4))
    assert np.isfinite(trainer.run_epoch().psnr_db)
    trainer.save(tmp_path / "checkpoint.safetensors")
    test = data.load_test()[:2]
    manifest = export(
        tmp_path / "checkpoint.safetensors", tmp_path / "model", data=data, images=images, test=test, origin={}
    )
    model = manifest["model"]
    assert (model["channels"], model["image_size"], model["padding"]) == (3, crop, 0)
    assert model["size_multiple"] == crop
    denoiser = Denoiser(tmp_path / "model")
    assert evaluate(denoiser, test, data.noise, "test") == manifest["metrics"]["test"]
    assert manifest["data"]["noise"] == noise
    assert "slides" not in (tmp_path / "model" / "README.md").read_text()


def test_the_digest_tells_other_images(folder):
    config = DataConfig(data=str(folder), crop=32)
    before = config.load().digest
    assert config.load().digest == before
    path = next(path for path in folder.iterdir() if path.name in names(folder)["train"])
    pixels = np.array(Image.open(path))
    pixels[0, 0, 0] ^= 1
    save(pixels, path)
    assert config.load().digest != before


# --- bad input ------------------------------------------------------------------------------------------------------


def _cut_short(folder: Path) -> str:
    path = folder / "rocket.png"
    path.write_bytes(path.read_bytes()[:2000])
    return "rocket.png: cannot be read"


def _empty_file(folder: Path) -> str:
    (folder / "rocket.png").write_bytes(b"")
    return "rocket.png: not an image of the formats"


def _text(folder: Path) -> str:
    (folder / "notes.png").write_text("not an image")
    return "notes.png: not an image of the formats"


def _small(folder: Path) -> str:
    save(np.zeros((20, 50, 3), np.uint8), folder / "small.png")
    return "small.png: has 50x20 pixels, below the crop of 32x32"


def _mixed(folder: Path) -> str:
    save(np.zeros((40, 50), np.uint8), folder / "grey.png")
    return "1 images are grey and 4 RGB; all must be of one kind. grey: grey.png"


def _leaving(folder: Path) -> str:
    outside = save(np.zeros((40, 50, 3), np.uint8), folder.parent / "outside.png")
    (folder / "link.png").symlink_to(outside)
    return "links that leave the folder: "


def _sixteen_bits(folder: Path) -> str:
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(folder / "deep.png")
    return "1 images are 16-bit and 4 8-bit; all must be of one kind. 16-bit: deep.png"


def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe.png")  # who reads it waits for somebody to write
    return "pipe.png: is not a file"


def _far_too_large(folder: Path) -> str:
    with (folder / "large.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # of holes: it takes no room
    return "large.png: has 500,000,001 bytes, above 500,000,000; compress it, or split it"


def _beside_the_split(folder: Path) -> str:
    for split, name in (("train", "chelsea"), ("train", "coffee"), ("test", "astronaut")):
        (folder / split).mkdir(exist_ok=True)
        (folder / f"{name}.png").rename(folder / split / f"{name}.png")
    return "rocket.png: beside test/ and train/; put each image into one of train, validation, test"


def _overlapping(folder: Path) -> str:
    for split in ("train", "validation", "test"):
        (folder / split).mkdir()
    (folder / "test" / "other.png").write_bytes((folder / "rocket.png").read_bytes())
    (folder / "rocket.png").rename(folder / "train" / "rocket.png")
    (folder / "coffee.png").rename(folder / "train" / "coffee.png")
    (folder / "chelsea.png").rename(folder / "validation" / "chelsea.png")
    (folder / "astronaut.png").unlink()
    return "train/rocket.png and test/other.png are the same image"


def _no_partner(folder: Path) -> str:
    for kind in ("noisy", "clean"):
        (folder / kind).mkdir()
    for path in list(folder.glob("*.png")):
        save(noised(np.array(Image.open(path))), folder / "noisy" / path.name)
        path.rename(folder / "clean" / path.name)
    (folder / "noisy" / "rocket.png").unlink()
    return "clean/rocket.png: has no partner in noisy/"


def _sizes_differ(folder: Path) -> str:
    _no_partner(folder)
    save(np.zeros((40, 50, 3), np.uint8), folder / "noisy" / "rocket.png")
    return "noisy/rocket.png: has 50x40 pixels, and clean/rocket.png 320x214 pixels"


def _too_few(folder: Path) -> str:
    (folder / "rocket.png").unlink()
    (folder / "coffee.png").unlink()
    return "2 different images are too few"


def _nothing(folder: Path) -> str:
    for path in folder.iterdir():
        path.unlink()
    return "has no images"


BAD: list[Callable[[Path], str]] = [
    _cut_short, _empty_file, _text, _small, _mixed, _leaving, _sixteen_bits, _pipe, _far_too_large, _beside_the_split,
    _overlapping,
    _no_partner, _sizes_differ, _too_few, _nothing,
]  # fmt: skip


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__.strip("_"))
def test_a_folder_that_cannot_be_used_says_why(folder, spoil):
    expected = spoil(folder)
    with pytest.raises(DataError) as caught:
        DataConfig(data=str(folder), noise="real" if "sizes" in spoil.__name__ else "gaussian:30", crop=32).load()
    assert expected in str(caught.value)


def test_all_mistakes_of_a_folder_are_told_at_once(folder):
    expected = [_cut_short(folder), _text(folder), _small(folder)]
    with pytest.raises(DataError) as caught:
        read_pictures(str(folder), 32)
    assert all(words in str(caught.value) for words in expected)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"crop": 48}, "crop=48: must be one of 16, 32, 64, 128, 256"),
        ({"data": "fashion-mnist", "crop": 32}, "crop=32: is for a folder of images"),
        ({"data": "fashion-mnist", "noise": "real"}, "noise=real: is for a folder of noisy/clean pairs"),
        ({"data": "/nowhere/at/all"}, "data=/nowhere/at/all: is not a folder"),
        ({"noise": "real"}, "has no noisy/ beside clean/"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(folder, settings_, words):
    with pytest.raises(ConfigError, match=words):
        DataConfig(**{"data": str(folder), **settings_}).load()


def test_pairs_ask_for_real_noise(folder):
    _no_partner(folder)
    (folder / "noisy" / "rocket.png").write_bytes((folder / "clean" / "rocket.png").read_bytes())
    with pytest.raises(DataError, match=r"whose noise is in the files: --noise real"):
        DataConfig(data=str(folder), crop=32).load()


@given(content=st.binary(max_size=200), flips=st.lists(st.integers(0, 5000), max_size=5))
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
def test_no_file_whatever_makes_anything_but_a_clear_error(tmp_path_factory, photographs, content, flips):
    folder = tmp_path_factory.mktemp("fuzzed")
    for name, pixels in photographs.items():
        save(pixels[:64, :64], folder / f"{name}.png")
    (folder / "junk.jpg").write_bytes(content)
    file = io.BytesIO()
    Image.fromarray(photographs["coffee"][:48, :48]).save(file, "PNG")
    damaged = bytearray(file.getvalue())
    for place in flips:
        damaged[place % len(damaged)] ^= 0xFF
    (folder / "damaged.png").write_bytes(damaged)
    with pytest.raises(DataError) as caught:
        read_pictures(str(folder), 32)
    assert "junk.jpg" in str(caught.value)
    assert os.listdir(folder)


NODES = st.sampled_from(
    ["train", "test", "validation", "noisy", "clean", "a.png", "b.png", "c.png", ".hidden.png", "x.PNG"]
)
ODD_NAMES = st.sampled_from(["\x1b[2J.png", "a\nb.png", "\udcff.png", ".png", "a.png.txt", " .png"])
KINDS = ["image", "image", "image", "copy", "link", "loop", "away", "gone", "pipe", "folder", "empty"]


@given(
    tree=st.dictionaries(
        st.lists(NODES | ODD_NAMES, min_size=1, max_size=3).map(tuple), st.sampled_from(KINDS), max_size=9
    )
)
@example(tree={("a.png",): "pipe"})
@example(tree={("a.png",): "loop"})
@example(tree={("\x1b[2J.png",): "empty"})
def test_any_tree_of_files_is_split_without_an_overlap_or_told_in_lines(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("fuzzed")
    for number, (parts, kind) in enumerate(tree.items()):
        path = folder.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind in ("image", "copy"):
                pixels = np.full((16, 16 + number), 7 if kind == "copy" else number, np.uint8)
                Image.fromarray(pixels).save(path, "PNG")
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind == "folder":
                path.mkdir()
            elif kind == "empty":
                path.touch()
            else:
                targets = {"link": folder / "a.png", "loop": path, "away": Path(__file__), "gone": folder / "nowhere"}
                path.symlink_to(targets[kind])
        except OSError:  # it stands there already
            continue
    try:
        pictures = read_pictures(str(folder), 16).splits
    except DataError as error:
        assert_readable(error, f"data={folder}")
    else:
        assert all(pictures[split] for split in ("train", "validation", "test"))
        seen = {split: {picture.digest for picture in several} for split, several in pictures.items()}
        assert len(set().union(*seen.values())) == sum(map(len, seen.values()))
