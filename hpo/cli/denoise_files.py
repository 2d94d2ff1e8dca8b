"""`hpo denoise`: image files in, files of the same kind out. What is wrong is told before the first one is written."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rich.console import Console
from rich.progress import Progress

from hpo.exit_codes import EXIT_DONE, EXIT_LEFT_OUT
from model.common.errors import ConfigError, ErrorCollector, MachineError
from model.common.files import atomic_replace, write_problem
from model.common.text import did_you_mean, sanitize_for_terminal, truncated_repr
from model.data.folder_layout import SYSTEM_FILES, list_some
from model.data.image_formats import IMAGE_SUFFIXES, SUFFIXES, ImageError, ImageFile, SeveralPagesError
from model.data.image_reading import read_image, read_pages
from model.data.image_writing import format_problem, output_format, write_image
from model.data.pixel_format import PixelFormat
from model.data.tiff import write_tiff
from model.denoise import Denoiser

RECORD = ".hpo-denoise.jsonl"  # beside the outputs: what each was made from
FORMATS = {"png": "PNG", "tiff": "TIFF", "webp": "WEBP", "jpeg": "JPEG"}
_WHITES = (1, 255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bits


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiseOptions:
    """The options of the command. Raises ConfigError, naming all mistakes at once."""

    format: str | None = None  # one of FORMATS; None: as the input
    quality: int | None = None  # 1 to 100, of JPEG and WebP
    range: Sequence[float] | None = None  # black and white of 16 bits and floats; None: the model's, or the depth's
    frames: str | None = None  # all: each page of a TIFF
    strip_metadata: bool = False
    skip_bad: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        mistakes = []
        if self.format not in (None, *FORMATS):
            mistakes.append(
                f"format={truncated_repr(self.format)}: no such format. {did_you_mean(str(self.format), FORMATS)}"
            )
        if self.quality is not None and not (isinstance(self.quality, int) and 1 <= self.quality <= 100):
            mistakes.append(f"quality={truncated_repr(self.quality)}: must be a whole number from 1 to 100, such as 90")
        if self.range is not None and not _is_range(self.range):
            given = " ".join(map(str, self.range))
            mistakes.append(f"range={given}: must be two numbers, the lower one first, such as 0 4095")
        if self.frames not in (None, "all"):
            mistakes.append(f"frames={truncated_repr(self.frames)}: must be all")
        if mistakes:
            raise ConfigError("\n".join(mistakes))


def _is_range(given: Sequence[Any]) -> bool:
    are_numbers = all(isinstance(each, float) and math.isfinite(np.float32(each)) for each in given)
    return are_numbers and bool(np.float32(given[0]) < np.float32(given[1]))  # as they are reckoned with


def denoise_files(
    model: Path, images: Sequence[Path], to: Path, wishes: DenoiseOptions, mistakes: ErrorCollector
) -> int:
    """Denoise images, and folders of them with all below, into the folder `to`; gives the exit code.

    Nothing is written where anything is wrong, but with wishes.skip_bad, which leaves out images that cannot be used.
    mistakes: of the command line, told with those of the images. Raises ConfigError, OSError.
    """
    work = _Work(to=to, wishes=wishes)
    sources = list(_sources(images, to, work, mistakes))
    if not sources and not mistakes:
        mistakes.add(f"{_named(images)}: no images there ({', '.join(IMAGE_SUFFIXES)})")
    denoiser = None
    with mistakes.catch():
        denoiser = Denoiser(model)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        for source, below in progress.track(sources, description="Reading"):
            work.plan(source, below, denoiser)
    work.check(mistakes)
    mistakes.raise_if_any()
    assert denoiser
    work.tell_notes()
    made = work.make(denoiser)
    return work.tell_end(made)


# --- what there is to denoise ----------------------------------------------------------------------------------------


def _sources(images: Iterable[Path], to: Path, work: _Work, mistakes: ErrorCollector) -> Iterator[tuple[Path, Path]]:
    """Each image once, with its path below `to`."""
    seen = set()
    for given in images:
        if given.is_dir():
            files = list(_inside(given, to, work, mistakes))
            if not files:
                mistakes.add(f"{given}: no images there ({', '.join(IMAGE_SUFFIXES)})")
        elif _is_litter(given.name):
            continue
        else:
            files = [given]
        for source in files:
            if not source.exists():
                mistakes.add(f"{source}: there is no such file")
            elif source.suffix.lower() not in IMAGE_SUFFIXES:
                mistakes.add(f"{source}: an image ends in {', '.join(IMAGE_SUFFIXES)}")
            elif (place := source.resolve()) not in seen:
                seen.add(place)
                yield source, source.relative_to(given) if given.is_dir() else Path(source.name)


def _inside(folder: Path, to: Path, work: _Work, mistakes: ErrorCollector) -> Iterator[Path]:
    """All images below a folder, but for those in `to`."""

    def unreadable(error: OSError) -> None:
        mistakes.add(f"{error.filename}: cannot be read ({error.strerror})")

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        place = Path(parent)
        for name in sorted(folders):
            if (place / name).is_symlink():
                work.left_out.append(place / name)
        folders[:] = sorted(name for name in folders if name[0] != "." and (place / name).resolve() != to.resolve())
        for name in sorted(names):
            if name[0] == "." or _is_litter(name):
                continue
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield place / name
            else:
                work.left_out.append(place / name)


def _is_litter(name: str) -> bool:
    """What systems leave beside images, hidden or not."""
    return name.startswith("._") or name.lower() in (*SYSTEM_FILES, ".ds_store")


# --- what is to be done with them ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """One output."""

    source: Path
    below: Path  # its path below `to`
    form: str
    made_from: str  # a digest of all that it depends on


@dataclass(kw_only=True, slots=True)
class _Work:
    """All of one command."""

    to: Path
    wishes: DenoiseOptions
    plans: list[_Plan] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)  # of folders: what is no image
    bad: list[str] = field(default_factory=list)  # in words
    notes: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    has_deep: bool = False
    done: list[_Plan] = field(default_factory=list)  # before, and whole

    def plan(self, source: Path, below: Path, denoiser: Denoiser | None) -> None:
        """Reads it all: what cannot be denoised or written is told before anything is written."""
        try:
            form = ""
            for number, page in enumerate(_pages(source, self.wishes)):
                form = form or (FORMATS[self.wishes.format] if self.wishes.format else output_format(page))
                if number and form != "TIFF":
                    raise ImageError(
                        f"{source}: has several pages, and {form} has one; leave out --format, or take tiff"
                    )
                if why := format_problem(page, form):
                    raise ImageError(f"{source}: {why}")
                _check_values(source, page, self.wishes.range, denoiser)
                self.has_deep |= page.pixels.dtype != np.uint8
                for note in _notes(source, page, form, self.wishes, denoiser):
                    self._note(note, source)
            suffix = below.suffix if below.suffix.lower() in SUFFIXES[form] else SUFFIXES[form][0]
            made_from = _made_from(source, form, self.wishes, denoiser) if denoiser else ""
            self.plans.append(_Plan(source=source, below=below.with_suffix(suffix), form=form, made_from=made_from))
        except ImageError as error:
            self.bad.append(str(error))

    def _note(self, note: str, source: Path) -> None:
        if source not in self.notes[note]:
            self.notes[note].append(source)

    def check(self, mistakes: ErrorCollector) -> None:
        """What is wrong with the outputs as a whole, and with what stands in their places."""
        if not (self.wishes.skip_bad and self.plans):
            mistakes.add(*self.bad)
        if self.wishes.range is not None and not self.has_deep:
            ends = " ".join(f"{end:g}" for end in self.wishes.range)
            mistakes.add(f"range={ends}: is of images of 16 bits and floats, and all have 8 bits; leave it out")
        if self.wishes.quality is not None and not any(plan.form in ("JPEG", "WEBP") for plan in self.plans):
            mistakes.add(f"quality={self.wishes.quality}: is of JPEG and WebP, and no output is one")
        sources = {plan.source.resolve() for plan in self.plans}
        taken: dict[Path, _Plan] = {}
        written = _recorded(self.to)
        for plan in self.plans:
            target = self.to / plan.below
            other = taken.setdefault(plan.below, plan)
            if target.resolve() in sources:
                mistakes.add(f"{plan.source}: would be overwritten; name another folder with --to")
            elif other is not plan:
                mistakes.add(f"{plan.source}: has the same name as {other.source}; both would be {target}")
            elif why := write_problem(target.parent):
                mistakes.add(f"{target.parent}: {why}; name another with --to")
            elif target.is_dir():
                mistakes.add(f"{target}: is a folder; name another with --to")
            elif target.exists() and not self.wishes.overwrite:
                self._check_there(plan, target, written, mistakes)

    def _check_there(self, plan: _Plan, target: Path, written: _Written, mistakes: ErrorCollector) -> None:
        made_from = written.get((str(plan.below), _digest(target)))
        if made_from is None:
            mistakes.add(f"{target}: is there, and is not a file that this command wrote; --overwrite replaces it")
        elif made_from == plan.made_from:
            self.done.append(plan)
        else:
            self._note("made anew: what is there is of another model, other options or another input", plan.source)

    def make(self, denoiser: Denoiser) -> int:
        """Gives how many."""
        todo = [plan for plan in self.plans if plan not in self.done]
        made = 0
        with Progress(console=Console(stderr=True)) as progress:
            for plan in progress.track(todo, description="Denoising"):
                try:
                    self._make(plan, denoiser)
                    made += 1
                except ImageError as error:  # it was exchanged since it was looked at
                    if not self.wishes.skip_bad:
                        raise
                    self.bad.append(str(error))
        return made

    def _make(self, plan: _Plan, denoiser: Denoiser) -> None:
        target = self.to / plan.below
        target.parent.mkdir(parents=True, exist_ok=True)
        denoised = (
            denoise_image(denoiser, _stripped(page) if self.wishes.strip_metadata else page, self.wishes.range)
            for page in _pages(plan.source, self.wishes)
        )
        with _encoding(plan), atomic_replace(target) as part:
            if plan.form == "TIFF":
                write_tiff(denoised, part)
            else:
                write_image(next(denoised), part, plan.form, quality=self.wishes.quality)
            record = {"output": str(plan.below), "made_from": plan.made_from, "sha256": _digest(part)}
            _record(self.to / RECORD, record)  # first: a file in its place is known, whenever the command ends

    def tell_notes(self) -> None:
        """What a user should know, once a run."""
        if self.left_out:
            _say(f"{len(self.left_out)} left out, no image by its name or a link to a folder: {_named(self.left_out)}")
        for note, sources in self.notes.items():
            _say(f"{_images(len(sources))}: {note}: {_named(sources)}")

    def tell_end(self, made: int) -> int:
        """Gives the exit code."""
        there = f"; {_images(len(self.done))} there already, and whole (--overwrite: anew)" if self.done else ""
        _say(f"{_images(made)} denoised to {self.to}{there}")
        if self.bad:
            _say("\n".join([f"{_images(len(self.bad))} left out:", *self.bad]))
        return EXIT_LEFT_OUT if self.bad else EXIT_DONE


# --- one image -------------------------------------------------------------------------------------------------------


def denoise_image(denoiser: Denoiser, image: ImageFile, given: Sequence[float] | None = None) -> ImageFile:
    """The same file with denoised pixels, at their depth; alpha is carried over as it is.

    given: black and white of 16 bits and floats; None: as the model was trained, or 0 and 65535, 0 and 1. Raises
    DenoiseError.
    """
    pixels = image.pixels
    if pixels.dtype == np.uint8 or (pixels.dtype == np.uint16 and not given):
        return replace(image, pixels=denoiser(pixels))
    low, high = (np.float32(end) for end in _range_of(image, given, denoiser))
    scaled = np.clip((pixels.astype(np.float32) - low) / (high - low) * 2 - 1, -1, 1)  # clip: rounding
    denoised = (denoiser(scaled) + 1) / 2 * (high - low) + low
    if pixels.dtype == np.uint16:
        denoised = np.rint(np.clip(denoised, 0, 65535))  # a range may be wider
    return replace(image, pixels=denoised.astype(pixels.dtype))


def _range_of(image: ImageFile, given: Sequence[float] | None, denoiser: Denoiser | None) -> tuple[float, float]:
    """Black and white: what was given, what the model was trained on, or all that the depth has."""
    if given and image.pixels.dtype != np.uint8:
        return given[0], given[1]
    depth = denoiser.pixel_format(image.pixels.dtype) if denoiser else PixelFormat(str(image.pixels.dtype))
    return depth.low, depth.high


def _check_values(source: Path, image: ImageFile, given: Sequence[float] | None, denoiser: Denoiser | None) -> None:
    """Nothing is clipped without a word. Raises ImageError."""
    broken = image.pixels.size - int(np.isfinite(image.pixels).sum())
    if broken:
        raise ImageError(f"{source}: {broken} values are NaN or infinite; put numbers there, such as a median's")
    least, most = float(image.pixels.min()), float(image.pixels.max())
    low, high = _range_of(image, given, denoiser)
    if least < low or most > high:
        fitting = next((white for white in _WHITES if most <= white), most) if least >= 0 else most
        raise ImageError(
            f"{source}: has values from {least:g} to {most:g}, outside {low:g} (black) to {high:g} (white); say what "
            f"black and white are, such as --range {min(0, least):g} {fitting:g}"
        )


def _notes(
    source: Path, image: ImageFile, form: str, wishes: DenoiseOptions, denoiser: Denoiser | None
) -> Iterator[str]:
    """What is done with an image that may surprise."""
    yield from image.notes
    if source.suffix.lower() not in SUFFIXES[image.format]:
        yield f"{image.format} by its content, whatever its name says"
    if form != image.format and wishes.format is None:
        yield f"{image.format}, written as {form}, which loses nothing"
    if image.pixels.dtype != np.uint8:
        low, high = _range_of(image, wishes.range, denoiser)
        kind = "16 bits" if image.pixels.dtype == np.uint16 else "floats"
        yield f"{kind}, {low:g} taken for black and {high:g} for white (--range says otherwise)"
        white = next((white for white in _WHITES[1:] if image.pixels.max() <= white), high)
        if wishes.range is None and image.pixels.dtype == np.uint16 and white < high:
            yield f"no value above {white}: if that is white there, --range 0 {white} is right"
    if denoiser and image.channels != denoiser.channels:
        if image.channels == 1:
            yield "grey, and the model takes colour: it gets the same plane three times, and their mean is written"
        else:
            yield "colour, and the model takes grey: each channel is denoised by itself"


@contextmanager
def _encoding(plan: _Plan) -> Iterator[None]:
    try:
        yield
    except (OSError, ConfigError):
        raise
    except MemoryError as error:
        raise MachineError(f"{plan.source}: does not fit in this machine's memory") from error
    except Exception as error:  # the encoders', which have no common base but this
        raise ImageError(f"{plan.source}: cannot be written as {plan.form} ({error})") from error


def _pages(source: Path, wishes: DenoiseOptions) -> Iterator[ImageFile]:
    if wishes.frames:
        return read_pages(source)
    try:
        return iter([read_image(source)])
    except SeveralPagesError as error:
        raise ImageError(f"{source}: has several pages; --frames all denoises each of them") from error


def _stripped(image: ImageFile) -> ImageFile:
    """The profile stays: without it the colours were others."""
    return replace(image, exif=None, resolution=None)


# --- what was done before --------------------------------------------------------------------------------------------


def _made_from(source: Path, form: str, wishes: DenoiseOptions, denoiser: Denoiser) -> str:
    """Whatever changes an output changes this."""
    asked = {name: value for name, value in asdict(wishes).items() if name not in ("skip_bad", "overwrite")}
    network = denoiser.manifest["files"][denoiser.manifest["model"]["file"]]
    return hashlib.sha256(json.dumps([network, _digest(source), form, asked]).encode()).hexdigest()


_Written: TypeAlias = dict[tuple[str, str], str]  # what an output was made from, by its path below `to` and its SHA-256


def _recorded(to: Path) -> _Written:
    path, found = to / RECORD, {}
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            record = json.loads(line)
            found[record["output"], record["sha256"]] = str(record["made_from"])
        except (ValueError, TypeError, KeyError, RecursionError):  # cut short, or somebody else's
            continue
    return found


def _record(path: Path, record: Mapping[str, str]) -> None:
    """A line of its own, even behind one that was cut short."""
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666), "a") as file:
        file.write(f"\n{json.dumps(record)}\n")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named(paths: Sequence[Path]) -> str:
    return list_some([str(path) for path in paths])


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def _say(text: str) -> None:
    print(sanitize_for_terminal(text), file=sys.stderr)
