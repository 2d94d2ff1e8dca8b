"""`hpo denoise`: image files in, files of the same kind out. Everything is checked before the first file is written."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from rich.console import Console
from rich.progress import Progress

from hpo.cli.denoise_image import (
    FORMATS,
    DenoiseOptions,
    check_page,
    denoise_image,
    describe_conversion,
    pixel_format_of,
    read_image_pages,
)
from hpo.cli.messages import say
from hpo.exit_codes import EXIT_DONE, EXIT_LEFT_OUT
from model.common.errors import ConfigError, ErrorCollector, MachineError
from model.common.files import atomic_replace, write_problem
from model.data.folder_layout import SYSTEM_FILES, list_some
from model.data.image_formats import IMAGE_SUFFIXES, SUFFIXES, ImageError
from model.data.image_writing import output_format, write_image
from model.data.pixel_format import format_range
from model.data.tiff import write_tiff
from model.denoise import Denoiser

RECORD = ".hpo-denoise.jsonl"  # in the output folder: the fingerprint of each output
_NO_IMAGES = f"no images found ({', '.join(IMAGE_SUFFIXES)})"


def denoise_files(
    model: Path, images: Sequence[Path], to: Path, options: DenoiseOptions, errors: ErrorCollector
) -> int:
    """Denoise image files, and the images in folders and their subfolders, into a folder; return the exit code.

    Args:
        model: an exported folder.
        errors: those of the command line; they are reported together with those of the images.

    Raises:
        ConfigError: something is wrong, and nothing was written. With options.skip_bad, images that cannot be denoised
            are skipped instead.
        OSError
    """
    job = _Job(to=to, options=options)
    sources = list(_find_sources(images, job, errors))
    if not sources and not errors:
        errors.add(f"{_list_paths(images)}: {_NO_IMAGES}")
    denoiser = errors.attempt(Denoiser, model)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        for source, path in progress.track(sources, description="Reading"):
            job.plan(source, path, denoiser)
    job.check(errors)
    if errors or denoiser is None:
        raise errors.as_error()
    job.print_notes()
    return job.print_summary(written=job.write(denoiser))


# --- find the images -------------------------------------------------------------------------------------------------


def _find_sources(images: Sequence[Path], job: _Job, errors: ErrorCollector) -> Iterator[tuple[Path, Path]]:
    """Each image once, with the path of its output below the output folder."""
    seen = set()
    for image in images:
        if image.is_dir():
            files = list(_walk(image, job, errors))
            if not files:
                errors.add(f"{image}: {_NO_IMAGES}")
        else:
            files = [] if _is_system_file(image.name) else [image]
        for source in files:
            resolved = source.resolve()
            if not source.exists():
                errors.add(f"{source}: file not found")
            elif source.suffix.lower() not in IMAGE_SUFFIXES:
                errors.add(f"{source}: not an image by its name; names end in {', '.join(IMAGE_SUFFIXES)}")
            elif resolved not in seen:
                seen.add(resolved)
                yield source, source.relative_to(image) if image.is_dir() else Path(source.name)


def _walk(folder: Path, job: _Job, errors: ErrorCollector) -> Iterator[Path]:
    """The images of a folder and its subfolders, without hidden ones, links to folders and the output folder."""

    def report(error: OSError) -> None:
        errors.add(f"{error.filename}: cannot be read ({error.strerror})")

    for parent, folders, names in os.walk(folder, onerror=report):
        place = Path(parent)
        job.ignored += [place / name for name in sorted(folders) if (place / name).is_symlink()]
        folders[:] = sorted(name for name in folders if name[0] != "." and (place / name).resolve() != job.to.resolve())
        for name in sorted(names):
            if name[0] == "." or _is_system_file(name):
                continue
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield place / name
            else:
                job.ignored.append(place / name)


def _is_system_file(name: str) -> bool:
    """Whether an operating system puts such files beside images."""
    return name.startswith("._") or name.lower() in (*SYSTEM_FILES, ".ds_store")


# --- plan, check and write the outputs -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Output:
    source: Path
    path: Path  # below the output folder
    form: str
    fingerprint: str  # a digest of everything that the output depends on


@dataclass(kw_only=True, slots=True)
class _Job:
    """All files of one command."""

    to: Path
    options: DenoiseOptions
    outputs: list[_Output] = field(default_factory=list)
    up_to_date: list[_Output] = field(default_factory=list)  # written by an earlier run
    ignored: list[Path] = field(default_factory=list)  # not images, in the folders
    bad: list[str] = field(default_factory=list)  # an error for each image that cannot be denoised
    notes: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    uses_range: bool = False  # whether --range applies to an image

    def plan(self, source: Path, path: Path, denoiser: Denoiser | None) -> None:
        """Read an image completely, so that every error is found before anything is written."""
        form = ""
        try:
            for number, page in enumerate(read_image_pages(source, self.options)):
                form = form or (FORMATS[self.options.format] if self.options.format else output_format(page))
                check_page(source, page, form, number, pixel_format_of(page, self.options.range, denoiser))
                self.uses_range |= page.pixels.dtype != np.uint8
                for note in describe_conversion(source, page, form, self.options, denoiser):
                    self._add_note(note, source)
            suffix = path.suffix if path.suffix.lower() in SUFFIXES[form] else SUFFIXES[form][0]
            fingerprint = _fingerprint(source, form, self.options, denoiser) if denoiser else ""
        except ConfigError as error:
            self.bad.append(str(error) if isinstance(error, ImageError) else f"{source}: {error}")
        else:
            self.outputs.append(_Output(source, path.with_suffix(suffix), form, fingerprint))

    def _add_note(self, note: str, source: Path) -> None:
        if source not in self.notes[note]:
            self.notes[note].append(source)

    def check(self, errors: ErrorCollector) -> None:
        """Check the outputs together, and what exists in their places."""
        options = self.options
        if not (options.skip_bad and self.outputs):
            errors.add(*self.bad)
        if options.range is not None and not self.uses_range:
            shown = format_range((options.range[0], options.range[1]))
            errors.add(f"range={shown}: is for 16-bit and float32 images, and all have 8 bits; leave --range out")
        if options.quality is not None and not any(output.form in ("JPEG", "WEBP") for output in self.outputs):
            errors.add(f"quality={options.quality}: is for JPEG and WebP, and no output has these formats")
        sources = {output.source.resolve() for output in self.outputs}
        first: dict[Path, _Output] = {}
        recorded = _read_record(self.to)
        for output in self.outputs:
            target, other = self.to / output.path, first.setdefault(output.path, output)
            if target.resolve() in sources:
                errors.add(f"{output.source}: would be overwritten; choose another folder with --to")
            elif other is not output:
                errors.add(f"{output.source}: has the same name as {other.source}; both would be written to {target}")
            elif problem := write_problem(target.parent):
                errors.add(f"{target.parent}: {problem}; choose another with --to")
            elif target.is_dir():
                errors.add(f"{target}: is a folder; choose another with --to")
            elif target.exists() and not options.overwrite:
                self._check_existing(output, target, recorded, errors)

    def _check_existing(self, output: _Output, target: Path, recorded: _Record, errors: ErrorCollector) -> None:
        fingerprint = recorded.get((str(output.path), _digest(target)))
        if fingerprint is None:
            errors.add(f"{target}: exists, and this command did not write it; --overwrite replaces it")
        elif fingerprint == output.fingerprint:
            self.up_to_date.append(output)
        else:
            note = "written again, because the model, the options or the input have changed since the last run"
            self._add_note(note, output.source)

    def write(self, denoiser: Denoiser) -> int:
        """Denoise all images that are not up to date, and return how many."""
        outputs = [output for output in self.outputs if output not in self.up_to_date]
        written = 0
        with Progress(console=Console(stderr=True)) as progress:
            for output in progress.track(outputs, description="Denoising"):
                try:
                    self._write(output, denoiser)
                    written += 1
                except ImageError as error:  # the file has changed since it was planned
                    if not self.options.skip_bad:
                        raise
                    self.bad.append(str(error))
        return written

    def _write(self, output: _Output, denoiser: Denoiser) -> None:
        options, target = self.options, self.to / output.path
        target.parent.mkdir(parents=True, exist_ok=True)
        pages = read_image_pages(output.source, options)
        if options.strip_metadata:  # the profile stays, since the colours depend on it
            pages = (replace(page, exif=None, resolution=None) for page in pages)
        denoised = (denoise_image(denoiser, page, options.range) for page in pages)
        try:
            with atomic_replace(target) as part:
                if output.form == "TIFF":
                    write_tiff(denoised, part)
                else:
                    write_image(next(denoised), part, output.form, quality=options.quality)
                # Before the file takes its place, so that each output is recorded whenever the command ends.
                line = {"output": str(output.path), "made_from": output.fingerprint, "sha256": _digest(part)}
                _append_record(self.to / RECORD, line)
        except (OSError, ConfigError):
            raise
        except MemoryError as error:
            raise MachineError(f"{output.source}: does not fit in this machine's memory") from error
        except Exception as error:  # the encoders' errors have no other common base
            raise ImageError(f"{output.source}: cannot be written as {output.form} ({error})") from error

    def print_notes(self) -> None:
        """What a user should know before the first image is written."""
        if self.ignored:
            paths = _list_paths(self.ignored)
            say(f"{len(self.ignored)} ignored, not an image by its name or a link to a folder: {paths}")
        for note, sources in self.notes.items():
            say(f"{_count(sources)}: {note}: {_list_paths(sources)}")

    def print_summary(self, written: int) -> int:
        """Return the exit code."""
        kept = f"; {_count(self.up_to_date)} already up to date (--overwrite: write again)" if self.up_to_date else ""
        say(f"{written} image{'s' * (written != 1)} denoised to {self.to}{kept}")
        if self.bad:
            say("\n".join([f"{_count(self.bad)} skipped:", *self.bad]))
        return EXIT_LEFT_OUT if self.bad else EXIT_DONE


# --- the record of earlier runs --------------------------------------------------------------------------------------

_Record: TypeAlias = dict[tuple[str, str], str]  # fingerprints by (path below the output folder, SHA-256)


def _fingerprint(source: Path, form: str, options: DenoiseOptions, denoiser: Denoiser) -> str:
    """A digest of everything that changes an output."""
    chosen = {name: value for name, value in asdict(options).items() if name not in ("skip_bad", "overwrite")}
    network = denoiser.manifest["files"][denoiser.manifest["model"]["file"]]
    return hashlib.sha256(json.dumps([network, _digest(source), form, chosen]).encode()).hexdigest()


def _read_record(to: Path) -> _Record:
    path, recorded = to / RECORD, {}
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        with suppress(ValueError, TypeError, KeyError, RecursionError):  # a partial line, or another program's
            entry = json.loads(line)
            recorded[entry["output"], entry["sha256"]] = str(entry["made_from"])
    return recorded


def _append_record(path: Path, entry: Mapping[str, str]) -> None:
    """Write a line. It begins with a line break, since the last line may be incomplete."""
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666), "a") as file:
        file.write(f"\n{json.dumps(entry)}\n")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _list_paths(paths: Sequence[Path]) -> str:
    return list_some([str(path) for path in paths])


def _count(images: Sequence[object]) -> str:
    return f"{len(images)} image{'s' * (len(images) != 1)}"
