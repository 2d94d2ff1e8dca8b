"""Bad input: exit code 2 and all that is wrong, each with the rule, the value and the nearest right thing, before Ray
starts or a byte is written. What a part refuses by itself is tested beside it; here each kind meets the command."""

from __future__ import annotations

import pickle
import shlex
import shutil
import socket
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import disks
import numpy as np
import onnx
import pytest
import skimage.data
from drivers import GUARD_SECONDS, HPO
from PIL import Image
from saying import RayStartedError, hpo_says
from small_models import describe, save_model

from hpo.store.record import Record
from model.denoise import MANIFEST

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
Spoil = Callable[[Path], object]  # what it does to the folder that the command runs in


# --- the folder: file.txt, a.png, other/a.png, empty/, photos/, model/, runs/first -----------------------------------


def photo(name: str = "coffee") -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()[:48, :48])


@pytest.fixture(scope="module")
def world(undisturbed: Record, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the rows find, to be copied."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("other", "empty", "photos"):
        (folder / name).mkdir()
    (folder / "file.txt").write_text("text")
    for name in ("a.png", "other/a.png"):
        Image.new("L", (8, 8)).save(folder / name)
    for name in ("coffee", "chelsea", "rocket", "astronaut"):
        photo(name).save(folder / "photos" / f"{name}.png")
    save_model(folder / "model")
    shutil.copytree(undisturbed.folder, folder / "runs" / "first")
    return folder


def nothing(folder: Path) -> None:
    """As it is."""


def space(source: str) -> Spoil:
    text = f"from dataclasses import replace\n{source}\n"
    return lambda folder: (folder / "mine.py").write_text(text)


def suggesting(setting: str) -> Spoil:
    return space(f"def suggest(trial, base): return replace(base, {setting})")


def picture(name: str, make: Callable[[Path], object]) -> Spoil:
    """Of photos/."""
    return lambda folder: make(folder / "photos" / name)


def huge(path: Path) -> None:
    """120 megapixels in a few kB: the header alone is to be believed."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 12_000, 10_000, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def cut_short(path: Path) -> None:
    photo().save(path)
    path.write_bytes(path.read_bytes()[:600])


def pairs(folder: Path) -> None:
    for kind in ("noisy", "clean"):
        shutil.copytree(folder / "photos", folder / "pairs" / kind)


def without_partner(folder: Path) -> None:
    pairs(folder)
    (folder / "pairs" / "clean" / "rocket.png").unlink()


def of_another_size(folder: Path) -> None:
    pairs(folder)
    photo().crop((0, 0, 40, 30)).save(folder / "pairs" / "noisy" / "rocket.png")


def overlapping(folder: Path) -> None:
    for split, names in {"train": ("coffee", "chelsea"), "validation": ("rocket",), "test": ("coffee",)}.items():
        (folder / "splits" / split).mkdir(parents=True)
        for name in names:
            photo(name).save(folder / "splits" / split / f"{split}-{name}.png")


def leaving(folder: Path) -> None:
    (folder / "photos" / "link.png").symlink_to(folder / "a.png")


class Code:
    """Runs when it is unpickled, and must not."""

    def __reduce__(self) -> tuple[object, ...]:
        return open, ("it-ran", "w")


def with_code(folder: Path) -> None:
    (folder / "model" / "generator.onnx").write_bytes(pickle.dumps(Code()))
    describe(folder / "model")


def with_weights_outside(folder: Path) -> None:
    """And there is such a file in the current folder."""
    path = folder / "model" / "generator.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="outside.bin", size_threshold=0)
    shutil.move(folder / "model" / "outside.bin", folder / "outside.bin")
    describe(folder / "model")


def exchanged(folder: Path) -> None:
    save_model(folder / "other", weight=2.0)
    shutil.copyfile(folder / "other" / "generator.onnx", folder / "model" / "generator.onnx")


CLUSTER = """
cluster_name: x
max_wrokers: 3
provider: {type: aws, regoin: us-west-2}
"""

# --- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A command line, what it is told, and what is wrong with the folder."""

    command: str
    told: list[str]
    spoil: Spoil = nothing


LONG = "x" * 300
RATE = "lr_g=trial.suggest_float('lr_g', 1e-4, 1e-2)"
MINE = "search new --space mine.py"
PHOTOS = "search new --data photos --crop 16 --set batch_size=4"
DENOISE = "denoise model a.png --to out"
NO_FOLDER = "is a file; a folder is needed here"

COMMAND_LINE = {
    "an unknown option": Row("search new --trails 3", ["--trails: no such option. Did you mean --trials?"]),
    "an unknown option with its value": Row("search new --trails=3", ["--trails=3: no such option. Did you mean"]),
    "two unknown options": Row("search new --trails 3 --epohcs=4", ["Did you mean --trials?", "mean --epochs?"]),
    "half an option": Row("search new --tri 3", ["--tri: no such option"]),
    "an unknown command": Row("serch first", ["serch", "search"]),
    "no command": Row("", ["COMMAND"]),
    "no trials": Row("search new --trials 0", ["trials=0: must be at least 1"]),
    "fewer than no trials": Row("search new --trials -1", ["trials=-1: must be at least 1"]),
    "a word where a number belongs": Row(
        "search new --trials many", ["trials='many': must be a whole number, such as 24"]
    ),
    "words where numbers belong, of several kinds": Row(
        "search new --trials many --epochs x --max-cost y --crop z --pruner asah --sampler tep",
        [
            "trials='many'",
            "epochs='x'",
            "max_cost='y'",
            "crop='z'",
            "pruner=asah: must be one of asha, none, or a .py file",
        ],
    ),
    "one thing wrong of each kind": Row(
        "search ../x --trials 0 --noise gauss:3 --set widht=3 --set lr_g=7 --space optimisers --data empty "
        "--storage file.txt --wandb on --address nonsense",
        [
            "name='../x'",
            "trials=0",
            "gauss:3",
            "widht",
            "lr_g=7",
            "optimisers",
            "no images",
            "wandb=on",
            "address=nonsense",
        ],
    ),
    "the same of a training by hand": Row(
        "train --to out --epochs x --noise gauss:3 --set widht=3 --data mnist",
        ["epochs='x': epochs is a whole number", "noise=gauss:3", "widht", "data=mnist"],
    ),
    "the same of a launch": Row(
        "launch file.txt ../x --trials 0 --noise gauss:3 --space optimisers --set widht=3",
        ["file.txt: a cluster file is a mapping", "name='../x'", "trials=0", "gauss:3", "space=optimisers", "widht"],
    ),
    "an invalid name and target of a pull": Row("pull file.txt ../x --to runs", ["name=", "mapping", "not an export"]),
    "a name that leads outside": Row("search ../x", ["name='../x'", "1 to 64 letters", "such as x"]),
    "no name": Row("search ''", ["name=''"]),
    "a name of 300 letters": Row(f"search {LONG}", ["1 to 64 letters", f"such as {LONG[:64]}"]),
    "a name with a line break": Row("search 'a\nb'", ["name='a\\nb': must not contain control characters"]),
    "a path with a NUL": Row("search new --runs 'a\0b'", ["runs='a\\x00b'"]),
    "a path that is not UTF-8": Row("search new --runs 'a\udcff'", ["must not contain control characters"]),
    "a path of 300 letters in a part": Row(f"search new --runs {LONG}", ["xxx: path too long"]),
    "a folder that has no name": Row("search new --runs ''", ["runs='': must not be empty; it names a folder"]),
    "a storage that has no name": Row(
        "search new --storage ''", ["storage='': must not be empty; it names a folder or s3://"]
    ),
    "an invalid port": Row("dashboard first --port 70000", ["port=70000: cannot listen", "0-65535"]),
    "a port that is not a number": Row("dashboard first --port 80x", ["--port", "'80x'"]),
    "an unknown precision": Row("export first --precision int4", ["precision='int4': Did you mean int8?"]),
    "a negative loss": Row(
        "export first --precision int8 --max-loss-db -1", ["max_loss_db=-1.0: must be a number of dB, 0 or above"]
    ),
    "a word for a loss": Row("export first --precision int8 --max-loss-db much", ["max_loss_db='much': must be"]),
    "a loss of what loses nothing": Row("export first --max-loss-db 1", ["max_loss_db: is for --precision fp16 or"]),
    "an image of no size": Row("evaluate model --latency --size 0", ["latency size=0: must be at least 1"]),
    "no threads": Row("evaluate model --latency --threads 0", ["latency threads=0: must be at least 1", "core"]),
    "a word for a size": Row("evaluate model --latency --size big", ["latency size='big': must be at least 1"]),
    "a size that the network does not halve": Row(
        "evaluate model --latency --size 100",
        ["latency size=100: must be a multiple of 32", "the nearest is 96"],
        lambda folder: describe(folder / "model", size_multiple=32),
    ),
    "a size of no latency": Row("evaluate model --size 32 --threads 1", ["--size, --threads: is for --latency"]),
    "images of a latency": Row("evaluate model --latency --data photos", ["--data: --latency needs no images"]),
    "a missing trial": Row("export first --trial 8", ["trial=8: first has the trials 0 to 7"]),
    "a missing search": Row("show frist", ["frist: no such search in runs. Did you mean first?"]),
    "a missing search, to be deleted": Row("rm nope --yes", ["nope: no such search in runs"]),
    "the folder itself, to be deleted": Row("rm . --yes", ["name='.'"]),
    "an unconfirmed deletion": Row("rm first", ["runs/first: refusing to delete without", "--yes"]),
    "another search than the existing one": Row(
        "search first --trials 0 --noise gaussian:5",
        ["trials=0: must be", "noise: it has gaussian:30, not gaussian:5", "choose another name"],
    ),
    "another space than the existing one": Row(
        "search first --space optimizers",
        ["lr_g: was FloatDistribution(high=0.01, log=True, low=5e-05", "loss: was Categorical", "is missing"],
    ),
    "a search where a file is": Row(
        "search mine", ["runs/mine: is a file; choose another name"], lambda f: (f / "runs" / "mine").write_text("")
    ),
    "a search where somebody's folder is": Row(
        "search photos --runs .", ["photos: is a folder with other things in it, such as astronaut.png"]
    ),
    "searches in a file": Row("search new --runs file.txt", [f"file.txt: {NO_FOLDER}"]),
    "searches below a file": Row("show first --runs file.txt/x", ["file.txt/x: lies inside a file"]),
    "a list of a file": Row("list --runs file.txt", [NO_FOLDER]),
    "a report onto a folder": Row(
        "report first --to photos", ["photos: is a folder; --to must name a file, such as photos/"]
    ),
    "a report below a file": Row("report first --to file.txt/x", ["file.txt/x: lies inside a file"]),
    "a rule that picks nothing we know": Row(
        "export first --pick fatest --to out", ["pick='fatest': must be best", "Did you mean fastest?"]
    ),
    "a rule without its number": Row(
        "export first --pick best-below --to out", ["needs a number after a colon, such as best-below:20ms"]
    ),
    "a rule without a unit": Row("export first --pick best-below:20 --to out", ["needs a unit, ms, MB or parameters"]),
    "a rule, and no place": Row("export first --pick best", ["--pick best: needs --to DIR"]),
    "a rule and a trial": Row("export first --pick best --trial 1 --to out", ["--pick best and --trial 1: choose"]),
    "a rule for a search with one objective": Row(
        "export first --pick fastest --to out", ["first has one objective, ", "and so only `best`"]
    ),
    "a rule of a pull": Row("pull file.txt x --pick quick --to out", ["pick='quick': must be best"]),
    "a final training of a front": Row(
        "search new --objectives psnr,latency --final-epochs 3", ["final_epochs=3: must be 0 with several objectives"]
    ),
    "an export onto a file": Row("export first --to file.txt", [NO_FOLDER]),
    "an export among other files": Row(
        "export first --to photos", ["photos: exists and is not an export; choose another folder"]
    ),
    "a training onto a file": Row("train --to file.txt", [NO_FOLDER]),
    "denoised images onto a file": Row("denoise model a.png --to file.txt", [NO_FOLDER]),
    "denoised images onto themselves": Row("denoise model a.png --to .", ["a.png: would be overwritten", "--to"]),
    "two images of one name": Row(
        "denoise model a.png other/a.png --to out", ["other/a.png: has the same name as a.png"]
    ),
    "a storage that is a file": Row("search new --storage file.txt", ["/file.txt: is a file; name a folder, or s3://"]),
    "a storage below a file": Row("show first --storage file.txt/x", ["/file.txt/x: lies inside a file"]),
    "a storage with a part of 300 letters": Row(f"search new --storage {LONG}", ["path too long"]),
    "a storage that is the folder of searches": Row("search new --storage runs", ["storage=runs: is --runs itself"]),
    "a storage of an unknown kind": Row("search new --storage gs://b/p", ["gs://b/p: neither a folder nor s3://"]),
    "a storage without a bucket": Row("sync first --storage s3://", ["names no bucket: s3://BUCKET/PREFIX"]),
    "a storage with an unknown option": Row("list --storage s3://b?regoin=x", ["regoin", "Did you mean region?"]),
    "an invalid database URL": Row("search new --study-url sqlite:///x", ["must be postgresql://USER@HOST/DB"]),
    "a database with a password": Row("search new --study-url postgresql://u:p@h/d", ["without a password"]),
    "an invalid address": Row("search new --address nonsense", ["address=nonsense: must be local, auto, or HOST:PORT"]),
    "an address of Ray's client": Row("search new --address ray://h:1", ["address=ray://h:1: must be"]),
    "a command for the end with a NUL": Row("search new --on-finish 'a\0b'", ["on_finish=", "a command for the shell"]),
    "money where nothing costs": Row("search new --max-cost 5", ["max_cost=5.0", "of a cluster with price labels"]),
    "more GPUs than there are": Row(
        "search new --gpus-per-trial 64", ["a trial needs 1 CPUs and 64 GPUs; no node has them. The largest node has"]
    ),
    "more CPUs than there are": Row("search new --cpus-per-trial 10000", ["needs 10000 CPUs", "--cpus-per-trial"]),
    "one GPU and a half": Row("search new --gpus-per-trial 1.5", ["gpus_per_trial=1.5", "Ray has no 1.5 GPUs"]),
}

SPACE_AND_SETTINGS = {
    "low above high": Row(
        MINE, ["`low <= high`", "low=0.01, high=1e-05"], suggesting("lr_g=trial.suggest_float('lr_g', 1e-2, 1e-5)")
    ),
    "a logarithm from zero on": Row(
        MINE, ["`low > 0`", "log"], suggesting("lr_g=trial.suggest_float('lr_g', 0, 1, log=True)")
    ),
    "no choices": Row(MINE, ["`choices` must contain"], suggesting("loss=trial.suggest_categorical('loss', [])")),
    "bounds that are NaN": Row(
        MINE, ["mine.py", "bounds"], suggesting("lr_g=trial.suggest_float('lr_g', float('nan'), 1)")
    ),
    "a choice that is NaN": Row(
        MINE,
        ["lr_g=nan: lr_g is a finite number"],
        suggesting("lr_g=trial.suggest_categorical('lr_g', [float('nan')])"),
    ),
    "a parameter that no field knows": Row(
        MINE, ["widht is not a field", "Did you mean width?"], suggesting("width=trial.suggest_int('widht', 2, 4)")
    ),
    "a parameter that is the search's own": Row(
        MINE,
        ["epochs must be the same for all trials", "--epochs"],
        suggesting("epochs=trial.suggest_int('epochs', 2, 4)"),
    ),
    "a space that suggests nothing": Row(MINE, ["suggests nothing"], suggesting("lr_g=0.1")),
    "a space that raises": Row(MINE, ["ZeroDivisionError"], space("def suggest(trial, base): return 1 / 0")),
    "a space that exits": Row(MINE, ["mine.py: SystemExit: bye"], space("raise SystemExit('bye')")),
    "a space that is not Python": Row(MINE, ["mine.py: SyntaxError", "line 2"], space("def suggest(:")),
    "a space without suggest": Row(MINE, ["defines no suggest(trial, base)"], space("")),
    "a space of another signature": Row(MINE, ["TypeError", "suggest()"], space("def suggest(trial): return trial")),
    "invalid starting points": Row(
        MINE, ["STARTING_POINTS must be a list"], space("STARTING_POINTS = 5\nsuggest = print")
    ),
    "a space of batches above the data set": Row(
        "search new --data photos --crop 16 --space mine.py",
        ["the space suggests {'batch_size': ", "above the 18 training images"],
        suggesting("batch_size=trial.suggest_int('batch_size', 100, 200)"),
    ),
    "a space of networks too deep for the images": Row(
        f"{PHOTOS} --space mine.py",
        ["the space suggests {'depth': ", "image_size=16: must be a multiple of"],
        suggesting("depth=trial.suggest_int('depth', 5, 8)"),
    ),
    "a space whose values are out of range": Row(
        MINE, ["lr_g=2.", "at most 1"], suggesting("lr_g=trial.suggest_float('lr_g', 2, 3)")
    ),
    "an unknown space": Row("search new --space optimisers", ["space=optimisers", "Did you mean optimizers?"]),
    "a missing file of a space": Row(MINE, ["mine.py", "file not found"]),
    "a batch above the data set": Row(
        "search new --set batch_size=55001", ["batch_size=55001: above the 55,000 training"]
    ),
    "an epoch below a batch": Row("search new --images-per-epoch 10", ["images_per_epoch=10", "batch size, 64"]),
    "a network too deep for the images": Row("search new --set depth=6", ["image_size=32: must be a multiple of 64"]),
    "grace above the epochs": Row(
        "search new --grace-period 5 --epochs 3", ["grace_period=5: must be from 1 to the 3 epochs"]
    ),
    "a reduction by one": Row("search new --reduction-factor 1", ["reduction_factor=1: must be at least 2"]),
    "an unknown metric": Row("search new --objectives loss", ["objectives=loss: must be of balanced, ssim, psnr"]),
    "a limit on nothing": Row("search new --limit speed<=20", ["limit=speed<=20: speed is not an objective"]),
    "a latency of a size that does not fit, with one objective": Row(
        "search new --latency-size 100", ["latency size=100", "the nearest is 96"]
    ),
    "a latency of a size that does not fit": Row(
        "search new --objectives psnr,latency --latency-size 100", ["latency size=100", "the nearest is 96"]
    ),
    "an unknown noise": Row("search new --noise gauss:30", ["gauss:30", "gaussian:30"]),
    "an unknown setting": Row("search new --set widht=4", ["widht: no such setting. Did you mean width?"]),
    "a setting of the wrong kind": Row(
        "search new --set width=wide", ["width=wide: width is a whole number, such as width=64"]
    ),
    "a setting without a value": Row("search new --set width", ["width: a setting is NAME=VALUE"]),
    "a setting twice": Row("search new --set width=4 --set width=8", ["width: set twice, to 4 and 8"]),
    "a setting that is searched": Row("search new --set lr_g=0.01", ["lr_g: searched by the space losses_and_rates"]),
    "a setting that has an option": Row("search new --set epochs=3", ["use its own option instead: --epochs"]),
    "the same of a training by hand": Row("train --to out --set epochs=3", ["use its own option instead: --epochs"]),
    "a setting out of range": Row("train --to out --set lr_g=5", ["lr_g=5.0: lr_g must be above 0 and at most 1"]),
    "a setting that would take hours to build": Row(
        "search new --set width=1000000 --set blocks=9999", ["width=1000000", "at most 1024", "blocks=9999"]
    ),
    "a setting that is not a number": Row("search new --set dropout=nan", ["dropout=nan"]),
}

DATA = {
    "an unknown data set": Row("search new --data mnist", ["data=mnist", "fashion-mnist"]),
    "a data set that has no name": Row("search new --data ''", ["data=: neither a data set nor a folder"]),
    "a missing folder": Row("search new --data nowhere/at/all", ["data=nowhere/at/all: is not a folder"]),
    "a path of 300 letters": Row(f"search new --data {LONG}", ["neither a data set nor a folder"]),
    "an empty folder": Row("search new --data empty", ["empty: has no images (.png"]),
    "an empty folder, of a training by hand": Row("train --to out --data empty", ["empty: has no images (.png"]),
    "an empty folder, of an evaluation": Row("evaluate model --data empty", ["empty: has no images (.png"]),
    "noisy without clean": Row(
        "search new --data pairs --noise real --crop 16",
        ["noisy/rocket.png: has no partner in clean/"],
        without_partner,
    ),
    "sizes that differ within a pair": Row(
        "search new --data pairs --noise real --crop 16",
        ["noisy/rocket.png: has 40x30 pixels, and clean/"],
        of_another_size,
    ),
    "pairs, and a noise": Row("search new --data pairs --crop 16", ["has pairs", "--noise real"], pairs),
    "real noise, and no pairs": Row(f"{PHOTOS} --noise real", ["noise=real", "no noisy/ beside clean/"]),
    "an image for training and test": Row(
        "search new --data splits --crop 16",
        ["train/train-coffee.png and test/test-coffee.png are the same image"],
        overlapping,
    ),
    "links that leave the folder": Row(PHOTOS, ["links that leave the folder: ", "link.png"], leaving),
    "grey images among coloured ones": Row(
        PHOTOS, ["1 images are grey and 4 RGB"], picture("grey.png", lambda path: photo().convert("L").save(path))
    ),
    "an image below the crop": Row("search new --data photos --crop 64", ["has 48x48 pixels, below the crop of 64x64"]),
    "a crop that cannot be halved": Row("search new --data photos --crop 48", ["crop=48: must be one of 16, 32, 64"]),
    "a crop of Fashion-MNIST": Row("search new --crop 32", ["crop=32: is for a folder of images"]),
}


def of_images(make: Callable[[Path], object], told: str, name: str, as_data: str = "") -> list[Row]:
    """Each as data, and as what is to be denoised. as_data: what is told there, where it is something else."""
    return [
        Row(PHOTOS, [as_data or f"{name}: {told}"], picture(name, make)),
        Row("denoise model photos --to out", [f"photos/{name}: {told}"], picture(name, make)),
    ]


def saved(make: Callable[[], Image.Image], **options: object) -> Callable[[Path], object]:
    return lambda path: make().save(path, **options)


IMAGES = {
    f"{what}, {use}": row
    for what, rows in {
        "a JPEG that is cut short": of_images(cut_short, "cannot be read", "cut.jpg"),
        "an image of 0 bytes": of_images(Path.touch, "not an image of the formats", "zero.png"),
        "120 megapixels in 100 bytes": of_images(huge, "12000x10000 is above 100000000 pixels", "huge.png"),
        "32 bits": of_images(
            saved(lambda: Image.fromarray(np.zeros((48, 48), np.int32))),
            "1 x int32 of 32 bits a pixel (MINISBLACK); convert it to 8 or 16 bits a channel, or to float32",
            "deep.tif",
        ),
        "floating point that is not a number": of_images(
            saved(lambda: Image.fromarray(np.full((48, 48), np.nan, np.float32))),
            "2304 values are NaN or infinite; put numbers there",
            "float.tif",
        ),
        "an animation": of_images(
            saved(photo, save_all=True, append_images=[photo("chelsea")]), "has several frames; split it", "moving.webp"
        ),
        "a text that is named .png": of_images(
            lambda path: path.write_text("x"), "not an image of the formats", "text.png"
        ),
    }.items()
    for use, row in zip(("searched", "denoised"), rows, strict=True)
} | {
    "a missing image": Row("denoise model b.png --to out", ["b.png: file not found"]),
    "a file that is not an image": Row("denoise model file.txt --to out", ["file.txt: not an image by its name"]),
    "a folder without images": Row("denoise model empty --to out", ["empty: no images found"]),
    "several things to denoise, and no model": Row(
        "denoise nowhere b.png file.txt empty --to out", ["b.png", "file.txt", "empty", "nowhere: not an export"]
    ),
}

MODELS = {
    "no model": Row("evaluate nowhere", ["nowhere: not an export", "manifest.json"]),
    "a file in the place of a model": Row("evaluate file.txt", ["file.txt"]),
    "a pickle with code in it": Row(DENOISE, ["generator.onnx: onnxruntime cannot load it"], with_code),
    "a pickle with code in it, evaluated": Row(
        "evaluate model", ["generator.onnx: onnxruntime cannot load it"], with_code
    ),
    "a network of another architecture": Row(
        DENOISE,
        ["generator.onnx: onnxruntime cannot run it", "Got: 1 Expected: 3"],
        lambda f: (save_model(f / "model", channels=3), describe(f / "model")),
    ),
    "weights that are NaN": Row(
        DENOISE,
        ["generator.onnx: its output is not an image, or has values that are not finite"],
        lambda f: save_model(f / "model", weight=float("nan")),
    ),
    "a replaced network": Row(DENOISE, ["generator.onnx: its SHA-256 differs from the manifest's"], exchanged),
    "weights outside the ONNX file": Row(DENOISE, ["generator.onnx: onnxruntime cannot load it"], with_weights_outside),
    "a network that is gone": Row(
        DENOISE, ["generator.onnx: cannot be read"], lambda f: (f / "model" / "generator.onnx").unlink()
    ),
    "a manifest of another program": Row(
        DENOISE, ["manifest.json: damaged or not ours"], lambda f: (f / "model" / MANIFEST).write_text("[]")
    ),
    "a manifest of huge images": Row(
        DENOISE, ["manifest.json: damaged or not ours"], lambda f: describe(f / "model", image_size=10**9)
    ),
}

CLUSTERS = {
    "a missing cluster file": Row("cluster check nope.yaml", ["nope.yaml: cannot be read"]),
    "a cluster file that is not YAML": Row("cluster check a.png", ["a.png: invalid YAML"]),
    "unknown keys of a cluster file": Row(
        "cluster check c.yaml",
        ["max_wrokers", "max_workers", "provider.regoin", "region"],
        lambda f: (f / "c.yaml").write_text(CLUSTER),
    ),
}

TABLE = {
    f"{family}: {what}": row
    for family, rows in {
        "command line": COMMAND_LINE,
        "space and settings": SPACE_AND_SETTINGS,
        "data": DATA,
        "images": IMAGES,
        "models": MODELS,
        "cluster": CLUSTERS,
    }.items()
    for what, row in rows.items()
}


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())
@pytest.mark.filterwarnings("ignore::UserWarning")  # Optuna's, of odd spaces
def test_bad_input_is_refused_before_anything_is_written(row, world, tmp_path, capsys):
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    row.spoil(tmp_path)
    before = contents(tmp_path)
    code, out, err = hpo_says(*shlex.split(row.command), capsys=capsys)
    assert (code, out) == (2, ""), err
    for part in row.told:
        assert part in err
    assert "Traceback" not in err
    assert contents(tmp_path) == before


NUMBERS = [
    "epochs",
    "grace-period",
    "reduction-factor",
    "seed",
    "crop",
    "images-per-epoch",
    "trials",
    "keep-checkpoints",
    "final-epochs",
    "max-concurrent",
]
REALS = ["time-budget-minutes", "max-cost", "on-demand-after-minutes", "cpus-per-trial", "gpus-per-trial"]


@pytest.mark.parametrize("value", ["nan", "-inf", "-1", "1e400", "", "many", "0x10", str(10**30), "9" * 5_000])
def test_no_option_takes_a_number_that_is_none_and_all_are_told_at_once(value, capsys):
    options = [name for name in NUMBERS + REALS if not (name == "max-cost" and float_of(value) == float("inf"))]
    if value == str(10**30):  # harmless where only time is waited for; room is looked for later
        options = [name for name in NUMBERS if name != "grace-period"]  # that many epochs were asked for
    code, out, err = hpo_says("search", "new", *(f"--{name}={value}" for name in options), capsys=capsys)
    assert (code, out) == (2, "")
    told = {line.removeprefix("hpo: ").partition("=")[0] for line in err.splitlines()}
    assert {name.replace("-", "_") for name in options} <= told
    assert len(err) < 10_000
    assert not Path("runs").exists()


def float_of(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def test_a_port_that_is_taken_and_a_cluster_that_is_not_there_are_told_within_seconds(world, tmp_path, capsys):
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = hpo_says("dashboard", "first", "--port", str(port), capsys=capsys)
        assert (code, f"port={port}: cannot listen" in err) == (2, True)
    code, _, err = hpo_says("search", "new", "--address", f"127.0.0.1:{port}", capsys=capsys)
    assert (code, f"address=127.0.0.1:{port}: no Ray cluster answers" in err) == (2, True)
    assert not Path("runs/new").exists()


def test_a_cluster_without_room_for_a_trial_is_refused_and_the_search_is_as_if_never_asked_for(
    world, tmp_path, capsys, monkeypatch
):
    """Only Ray knows what a cluster has; here it is the start of Ray that refuses."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    from hpo.tune import ray_session  # noqa: PLC0415
    from model.common.errors import ConfigError  # noqa: PLC0415

    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("a trial needs 1 CPUs and 8 GPUs; no node has them")

    monkeypatch.setattr(ray_session, "check_address", lambda search, is_new: None)
    monkeypatch.setattr(ray_session, "RaySession", refuse)
    command = f"{PHOTOS} --address auto --gpus-per-trial 8"
    code, _, err = hpo_says(*shlex.split(command), capsys=capsys)
    assert (code, "no node has them" in err) == (2, True)
    assert not Path("runs/new").exists()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that not even root can write to."""
    with disks.disk(tmp_path / "read-only", megabytes=1) as folder, disks.read_only(folder):
        yield folder


@pytest.mark.parametrize(
    "command",
    [
        "search new --runs read-only/runs",
        "search new --storage read-only/storage",
        "export first --to read-only/x",
        "report first --to read-only/x.html",
        "denoise model a.png --to read-only/x",
        "train --to read-only/x",
    ],
)
def test_a_place_that_cannot_be_written_is_told_first(command, read_only, world, tmp_path, capsys):
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    code, out, err = hpo_says(*shlex.split(command), capsys=capsys)
    assert (code, out) == (2, "")
    assert "cannot be written" in err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("mode", ["CMYK", "P", "RGBA", "1"])
def test_other_kinds_of_pictures_are_converted_as_stated(mode, world, tmp_path, capsys):
    """CMYK and palettes to RGB, two colours to grey; alpha is kept by `denoise`, and left out of training images."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    suffix = "tif" if mode == "CMYK" else "png"
    photo().convert(mode).save(tmp_path / f"in.{suffix}")
    assert hpo_says("denoise", "model", f"in.{suffix}", "--to", "out", capsys=capsys)[0] == 0
    with Image.open(tmp_path / "out" / f"in.{suffix}") as denoised:
        assert denoised.mode == {"CMYK": "RGB", "P": "RGB", "1": "L"}.get(mode, mode)
    if mode != "1":
        photo().convert(mode).save(tmp_path / "photos" / f"in.{suffix}")
        with pytest.raises(RayStartedError):
            hpo_says(*shlex.split(f"{PHOTOS} --wandb disabled"), capsys=capsys)


@pytest.mark.slow
def test_the_command_itself_refuses_one_of_each_family(world, tmp_path):
    """In processes of their own."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    families = dict.fromkeys(name.partition(":")[0] for name in TABLE)
    chosen = ["one thing wrong of each kind", "a space that exits", "noisy without clean", "32 bits, searched"]
    chosen += ["a pickle with code in it", "unknown keys of a cluster file"]
    rows = [TABLE[f"{family}: {what}"] for family, what in zip(families, chosen, strict=True)]
    for row in rows:
        row.spoil(tmp_path)
    before = contents(tmp_path)
    commands = [[HPO, *shlex.split(row.command)] for row in rows]
    running = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for row, process in zip(rows, running, strict=True):
        out, err = process.communicate(timeout=GUARD_SECONDS)
        assert (process.returncode, out) == (2, ""), err
        assert all(part in err for part in row.told), err
        assert "Traceback" not in err
    assert contents(tmp_path) == before
