"""`hpo denoise`: a folder from a phone, a microscope or a camera goes in and comes out as its owner expects."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import skimage.data
import tifffile
from PIL import Image, ImageCms, ImageOps
from PIL.JpegImagePlugin import get_sampling
from saying import hpo_says
from skimage.metrics import peak_signal_noise_ratio
from small_models import save_model

from hpo.cli import denoise_files
from hpo.cli.denoise_files import RECORD
from hpo.cli.denoise_image import denoise_image
from hpo.exit_codes import EXIT_LEFT_OUT
from model.data.image_formats import ImageFile
from model.data.image_reading import read_image
from model.denoise import Denoiser

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
Denoise = Callable[..., tuple[int, str]]


@pytest.fixture
def denoise(capsys) -> Denoise:
    """`hpo denoise` of a model that changes nothing, or of another; gives the exit code and what was said."""
    save_model(Path("same"))

    def run(*words: object, model: str = "same", to: str = "out") -> tuple[int, str]:
        code, out, err = hpo_says("denoise", model, *map(str, words), "--to", to, capsys=capsys)
        assert out == ""
        assert "Traceback" not in err
        return code, err

    return run


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Taller than wide, with noise."""
    clean = skimage.data.astronaut()[:60, :40]
    noise = np.random.default_rng(0).normal(0, 20, clean.shape)
    return Image.fromarray(np.clip(clean + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def deep(photo) -> np.ndarray:
    low = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint16)
    return np.asarray(photo).astype(np.uint16) * 256 + low


def opened(path: Path | str) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


def outputs(folder: str = "out") -> set[str]:
    found = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in found} - {RECORD}


# --- what a file says ------------------------------------------------------------------------------------------------


def test_a_picture_that_viewers_turn_comes_out_as_they_show_it(photo, denoise):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "ACME"
    for name in ("a.png", "a.tif", "a.webp", "a.jpg"):
        photo.save(name, exif=exif, **{"a.webp": {"lossless": True}, "a.jpg": {"quality": 95}}.get(name, {}))
        assert denoise(name)[0] == 0
        seen, shown = opened(f"out/{name}"), ImageOps.exif_transpose(opened(name))
        assert (seen.size, seen.getexif().get(0x0112, 1), seen.getexif()[0x010F]) == (shown.size, 1, "ACME")
        difference = np.abs(np.asarray(seen).astype(int) - np.asarray(shown))
        assert difference.max() == 0 or (name == "a.jpg" and difference.mean() < 4)


def test_profile_resolution_and_exif_are_kept_or_left_out_as_asked(photo, denoise):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F] = "ACME"
    exif.get_ifd(0x8825).update({1: "N", 2: (60.0, 1.0, 2.0)})
    names = ["a.png", "b.jpg", "c.tif", "d.webp"]
    for name in names:
        photo.save(name, icc_profile=profile, dpi=(300, 300), exif=exif.tobytes())
    assert denoise(*names)[0] == 0
    assert denoise(*names, "--strip-metadata", to="bare")[0] == 0
    for name in names:
        kept, bare = opened(f"out/{name}"), opened(f"bare/{name}")
        assert kept.info["icc_profile"] == bare.info["icc_profile"] == profile
        assert (kept.getexif()[0x010F], kept.getexif().get_ifd(0x8825)[1]) == ("ACME", "N")
        assert (0x010F in bare.getexif(), bare.getexif().get_ifd(0x8825)) == (False, {})
        if name != "d.webp":
            assert round(float(kept.info["dpi"][0])) == 300
            assert round(float(bare.info.get("dpi", (0,))[0])) in (0, 1)  # a TIFF must have one


# --- what is written is what was measured ----------------------------------------------------------------------------


def test_lossless_stays_lossless_and_a_jpeg_is_not_made_worse_than_it_came(photo, denoise):
    photo.save("a.webp", lossless=True)
    photo.save("b.jpg", quality=98, subsampling=0)
    photo.save("c.jpg", quality=50, progressive=True)
    assert denoise("a.webp", "b.jpg", "c.jpg")[0] == 0
    assert np.array_equal(np.asarray(opened("out/a.webp")), np.asarray(photo))
    assert peak_signal_noise_ratio(np.asarray(opened("b.jpg")), np.asarray(opened("out/b.jpg"))) > 45
    for name in ("b.jpg", "c.jpg"):
        assert opened(f"out/{name}").quantization == opened(name).quantization
        assert get_sampling(opened(f"out/{name}")) == get_sampling(opened(name))


def test_a_format_and_a_quality_can_be_asked_for(photo, denoise):
    photo.save("a.png")
    photo.save("b.jpg")
    for form, suffix in {"png": ".png", "tiff": ".tif", "webp": ".webp", "jpeg": ".jpg"}.items():
        assert denoise("a.png", "b.jpg", "--format", form, to=form)[0] == 0
        assert outputs(form) == {f"a{suffix}", f"b{suffix}"}
        assert {opened(Path(form, name)).format for name in outputs(form)} == {form.upper()}
        if form in ("webp", "jpeg"):
            assert denoise("a.png", "--format", form, "--quality", "10", to="small")[0] == 0
            assert Path("small", f"a{suffix}").stat().st_size < Path(form, f"a{suffix}").stat().st_size


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--format gif", "format='gif': no such format. There are: png, tiff, webp, jpeg."),
        ("--quality 0", "quality=0: must be a whole number from 1 to 100, such as 90"),
        ("--quality high", "quality='high': must be"),
        ("--quality 90", "quality=90: is for JPEG and WebP, and no output has these formats"),
        ("--range 4095 0", "range=4095 0: must be LOW HIGH"),
        ("--range 0 nan", "range=0 nan: must be"),
        ("--range 1e9 1000000001", "range=1e+09 1e+09: must be"),
        ("--range 0 4095", "range=0 4095: is for 16-bit and float32 images, and all have 8 bits; leave --range out"),
        ("--frames 3", "frames='3': must be all"),
    ],
)
def test_an_option_that_is_wrong_or_would_do_nothing_is_refused(words, told, photo, denoise):
    photo.save("a.png")
    code, said = denoise("a.png", *words.split())
    assert (code, told in said, Path("out").exists()) == (2, True, False)


# --- 16 bits and floats ----------------------------------------------------------------------------------------------


def test_16_bits_and_floats_are_denoised_and_written_at_their_depth(deep, denoise):
    save_model(Path("half"), weight=0.5)
    grey, floats = np.ascontiguousarray(deep[..., 0]), (deep / 65535).astype(np.float32)
    files = {"a.tif": deep, "b.tif": grey, "c.tif": floats, "d.tif": floats[..., 0]}
    for name, pixels in files.items():
        tifffile.imwrite(name, pixels, photometric="rgb" if pixels.ndim == 3 else None)
    Image.fromarray(grey).save("e.png")
    Path("f.png").write_bytes(imagecodecs.png_encode(deep))
    code, said = denoise("a.tif", "b.tif", "c.tif", "d.tif", "e.png", "f.png", model="half")
    assert code == 0
    assert said.count("4 images: 16 bits, 0 is black and 65535 is white (--range changes it): a.tif") == 1
    assert said.count("2 images: float32, 0 is black and 1 is white (--range changes it): c.tif") == 1
    for name, pixels in {**files, "e.png": grey, "f.png": deep}.items():
        denoised = read_image(Path("out", name)).pixels
        white = 65535 if pixels.dtype == np.uint16 else 1
        expected = pixels.astype(float) / 2 + white / 4  # half the distance to the middle
        assert denoised.dtype == pixels.dtype
        assert np.abs(denoised - expected).max() <= 1e-5 * white  # of 8 bits it would be 2e-3


def test_a_range_is_followed_and_one_that_looks_wrong_is_named(deep, denoise):
    save_model(Path("half"), weight=0.5)
    camera, counts = deep[..., 0] >> 4, (deep[..., 1] / 257).astype(np.float32)
    tifffile.imwrite("camera.tif", camera)
    tifffile.imwrite("counts.tif", counts)
    code, said = denoise("camera.tif")
    assert (code, "no value above 4095; if that is white, use --range 0 4095" in said) == (0, True)
    code, said = denoise("counts.tif")
    assert code == 2
    assert f"from {counts.min():g} to {counts.max():g}, outside 0 (black) to 1 (white)" in said
    assert "--range 0 255" in said
    code, said = denoise("camera.tif", "--range", "0", "4095", model="half", to="ranged")
    assert (code, "0 is black and 4095 is white" in said) == (0, True)
    expected = np.rint((camera - 2047.5) * 0.5 + 2047.5)
    assert np.abs(tifffile.imread("ranged/camera.tif") - expected).max() <= 1
    code, said = denoise("camera.tif", "--range", "0", "1000", to="narrow")
    assert (code, "outside 0 (black) to 1000 (white)" in said) == (2, True)
    tifffile.imwrite("full.tif", deep[..., 0])
    code, said = denoise("full.tif", "--range", "0", "140000", to="wide")
    assert (code, "full.tif: range=0 140000: of 16-bit images must be within 0 ... 65535" in said) == (2, True)
    with_holes = counts / 255
    with_holes[3, 4:6] = np.nan
    tifffile.imwrite("holes.tif", with_holes)
    code, said = denoise("holes.tif", to="holes")
    assert (code, "holes.tif: 2 values are NaN or infinite; put numbers there" in said) == (2, True)


def test_the_pages_of_a_stack_are_denoised_where_that_is_asked_for(deep, photo, denoise):
    stack = np.ascontiguousarray(deep.transpose(2, 0, 1))
    scale = {"resolution": (2.5, 2.5), "metadata": {"spacing": 0.5, "unit": "um", "axes": "ZYX"}}
    tifffile.imwrite("stack.tif", stack, imagej=True, **scale)
    photo.save("one.png")
    photo.save("moving.webp", save_all=True, append_images=[photo.rotate(90)])
    code, said = denoise("stack.tif", "one.png")
    assert (code, "stack.tif: has several pages; --frames all denoises each of them" in said) == (2, True)
    assert denoise("stack.tif", "one.png", "--frames", "all")[0] == 0
    with tifffile.TiffFile("out/stack.tif") as before, tifffile.TiffFile("stack.tif") as after:
        assert np.array_equal(before.asarray(), stack)
        assert before.imagej_metadata == after.imagej_metadata
    code, said = denoise("moving.webp", "--frames", "all")
    assert (code, "moving.webp: has several frames; split it into single images" in said) == (2, True)
    code, said = denoise("stack.tif", "--frames", "all", "--format", "png", to="other")
    assert (code, "stack.tif: has several pages, and PNG has one" in said) == (2, True)


# --- what there is in a folder ---------------------------------------------------------------------------------------


def test_of_a_phones_file_the_first_picture_is_denoised_and_the_second_named(photo, denoise):
    photo.save("a.jpg", "MPO", save_all=True, append_images=[photo.resize((20, 30))])
    code, said = denoise("a.jpg")
    assert (code, opened("out/a.jpg").format, opened("out/a.jpg").size) == (0, "JPEG", (40, 60))
    assert "1 image: a second picture in the file (a gain map, a depth map or a preview) is left out: a.jpg" in said


def test_grey_for_a_model_of_colours_and_colour_for_one_of_grey_are_converted_and_it_is_said_once(photo, denoise):
    save_model(Path("colour"), channels=3)
    for number in range(7):
        photo.convert("L").save(f"{number}.png")
        photo.save(f"{number}.jpg")
    greys, colours = [f"{number}.png" for number in range(7)], [f"{number}.jpg" for number in range(7)]
    code, said = denoise(*greys, model="colour", to="grey")
    assert (code, opened("grey/0.png").mode) == (0, "L")
    assert np.array_equal(np.asarray(opened("grey/0.png")), np.asarray(photo.convert("L")))
    assert said.count("the model is for colour: it gets the plane three times, and the mean is written") == 1
    assert "7 images: grey" in said
    assert "4.png and 2 more" in said
    code, said = denoise(*colours, to="colour-out")
    assert (code, opened("colour-out/0.jpg").mode) == (0, "RGB")
    assert said.count("the model is for grey: each channel is denoised separately") == 1


def test_every_format_of_a_folder_is_denoised_and_what_is_left_out_is_named(photo, denoise):
    folder = Path("in")
    (folder / "below" / "x.png").mkdir(parents=True)
    lossless = ["a.png", "b.bmp", "c.ppm", "below/d.tif", "UPPER.PNG", "é 日本.png", "-dash.png"]
    for name in (*lossless, "e.pgm", "f.gif", "below/x.png/g.jp2", "h.avif", "i.jpg"):
        (photo.convert("L") if name == "e.pgm" else photo).save(folder / name)
    for name in ("._a.png", "Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt", "raw.cr2"):
        (folder / name).write_text("no image")
    code, said = denoise(folder, folder / "a.png", folder / "." / "a.png")
    assert code == 0
    expected = {*lossless, "e.pgm", "f.png", "below/x.png/g.png", "h.png", "i.jpg"}
    assert outputs() == expected
    for name in lossless:
        assert np.array_equal(np.asarray(opened(Path("out", name))), np.asarray(photo)), name
        assert opened(Path("out", name)).format == opened(folder / name).format
    assert "2 ignored, not an image by its name or a link to a folder: in/notes.txt, in/raw.cr2" in said
    assert not any(name in said for name in ("._a", "Thumbs", "DS_Store", "desktop.ini"))
    assert "1 image: GIF, written as PNG, which is lossless: in/f.gif" in said


def test_what_is_no_image_at_all_is_told(denoise):
    Path("Thumbs.db").write_text("x")
    code, said = denoise("Thumbs.db")
    assert (code, "Thumbs.db: no images found (.png" in said) == (2, True)


def test_outputs_inside_the_folder_are_no_inputs_the_next_time(photo, denoise):
    Path("in").mkdir()
    photo.save("in/a.png")
    assert denoise("in", to="in/out")[0] == 0
    assert denoise("in", "--overwrite", to="in/out")[0] == 0
    assert outputs("in/out") == {"a.png"}
    code, said = denoise("in", to="in")
    assert (code, "in/a.png: would be overwritten; choose another folder with --to" in said) == (2, True)


def test_a_link_in_a_circle_is_not_followed(photo, denoise):
    Path("in").mkdir()
    photo.save("in/a.png")
    Path("in/again").symlink_to("../in")
    code, said = denoise("in")
    assert (code, outputs(), "a link to a folder: in/again" in said) == (0, {"a.png"}, True)


# --- all or nothing --------------------------------------------------------------------------------------------------


def test_a_file_is_what_its_content_says_and_it_is_told(photo, denoise):
    photo.convert("RGBA").save("a.jpg", "PNG")
    code, said = denoise("a.jpg")
    assert (code, outputs(), opened("out/a.png").mode) == (0, {"a.png"}, "RGBA")
    assert "1 image: PNG by its content, although the name says otherwise: a.jpg" in said


def test_what_a_format_cannot_hold_is_told_before_anything_is_written(photo, deep, denoise):
    photo.save("a.png")
    photo.convert("RGBA").save("b.png")
    tifffile.imwrite("c.tif", deep, photometric="rgb")
    photo.save("d.jpg")
    photo.save("e.gif")
    photo.save("e.png")
    code, said = denoise("a.png", "b.png", "c.tif", "d.jpg", "--format", "jpeg")
    assert (code, Path("out").exists()) == (2, False)
    assert "b.png: JPEG has no transparency, as the image has; PNG, TIFF and WEBP have" in said
    assert "c.tif: JPEG has no 16 bits a channel" in said
    code, said = denoise("e.gif", "e.png")
    assert (code, "e.png: has the same name as e.gif; both would be written to out/e.png" in said) == (2, True)


def test_with_skip_bad_the_rest_is_denoised_and_what_was_left_out_is_listed(photo, denoise):
    photo.save("a.png")
    photo.save("whole.jpg")
    Path("b.jpg").write_bytes(Path("whole.jpg").read_bytes()[:500])
    Path("c.png").write_text("text")
    code, said = denoise("a.png", "b.jpg", "c.png")
    assert (code, Path("out").exists()) == (2, False)
    code, said = denoise("a.png", "b.jpg", "c.png", "--skip-bad")
    assert (code, outputs()) == (EXIT_LEFT_OUT, {"a.png"})
    assert "2 images skipped:\nb.jpg: cannot be read" in said
    assert "c.png: not an image of the formats" in said
    code, said = denoise("b.jpg", "c.png", "--skip-bad", to="none")
    assert (code, Path("none").exists()) == (2, False)
    code, said = denoise("a.png", "gone.png", "--skip-bad", to="none")  # a mistake of the command, not of an image
    assert (code, Path("none").exists()) == (2, False)


def test_an_image_that_is_damaged_while_others_are_denoised_is_told(photo, denoise, monkeypatch):
    photo.save("a.png")
    photo.save("b.png")
    monkeypatch.setattr(
        denoise_files._Job, "print_notes", lambda _: Path("a.png").write_text("text")
    )  # after the check
    code, said = denoise("a.png", "b.png", "--skip-bad")
    assert (code, outputs(), "a.png: not an image of the formats" in said) == (EXIT_LEFT_OUT, {"b.png"}, True)


# --- once more -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(photo) -> Path:
    Path("in").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        photo.save(Path("in", name))
    return Path("in")


def made_at() -> dict[str, int]:
    return {name: Path("out", name).stat().st_mtime_ns for name in sorted(outputs())}


def test_a_folder_that_was_interrupted_goes_on_where_it_was(folder, denoise, monkeypatch):
    whole = denoise_files.write_image
    written = []

    def interrupted(*given: object, **named: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(given)
        whole(*given, **named)

    monkeypatch.setattr(denoise_files, "write_image", interrupted)
    assert denoise(folder)[0] == 130
    assert outputs() == {"a.png", "b.png"}
    before = made_at()
    monkeypatch.setattr(denoise_files, "write_image", whole)
    code, said = denoise(folder)
    assert (code, "1 image denoised to out; 2 images already up to date (--overwrite: write again)" in said) == (
        0,
        True,
    )
    assert {name: at for name, at in made_at().items() if name in before} == before
    assert outputs() == {"a.png", "b.png", "c.png"}
    assert denoise(folder, "--overwrite")[0] == 0
    assert not set(made_at().values()) & set(before.values())


@pytest.mark.parametrize("other", ["model", "input", "option"])
def test_an_output_of_another_model_input_or_option_is_not_passed_off_as_this_ones(other, folder, photo, denoise):
    assert denoise(folder)[0] == 0
    before, words, model = made_at(), [], "same"
    if other == "model":
        save_model(Path("half"), weight=0.5)
        model = "half"
    elif other == "input":
        photo.rotate(90).save(folder / "b.png")
    else:
        words = ["--strip-metadata"]
    code, said = denoise(folder, *words, model=model)
    changed = {name for name, at in made_at().items() if at != before[name]}
    assert (code, changed) == (0, {"b.png"} if other == "input" else {"a.png", "b.png", "c.png"})
    assert "written again, because the model, the options or the input have changed since the last run: in/" in said


def test_a_file_is_known_as_this_commands_the_moment_that_it_is_in_its_place(folder, denoise, monkeypatch):
    """Whenever a power cut comes: here right after each file is there, and with one of another model before it."""
    save_model(Path("half"), weight=0.5)
    assert denoise(folder, model="half")[0] == 0
    replace = Path.replace
    for _ in range(3):

        def then_dies(part: Path, target: Path) -> None:
            replace(part, target)
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "replace", then_dies)
        assert denoise(folder)[0] == 130
        monkeypatch.setattr(Path, "replace", replace)
        assert len(outputs()) == 3
    code, said = denoise(folder)
    assert (code, "0 images denoised to out; 3 images already up to date" in said) == (0, True)


def test_what_this_command_did_not_write_is_not_overwritten(folder, photo, denoise):
    assert denoise(folder)[0] == 0
    Path("out/b.png").write_bytes(Path("out/b.png").read_bytes()[:100])  # cut short by a copy
    photo.rotate(180).save("out/c.png")  # edited by hand
    before = made_at()
    code, said = denoise(folder)
    assert (code, made_at()) == (2, before)
    for name in ("b.png", "c.png"):
        assert f"out/{name}: exists, and this command did not write it; --overwrite replaces it" in said
    assert denoise(folder, "--overwrite")[0] == 0
    assert np.array_equal(np.asarray(opened("out/c.png")), np.asarray(photo))


@pytest.mark.parametrize("line", ["", "{", "[]", "3", '{"output": "a.png"}', '{"output": ["a.png"]}', "\0\xff" * 9])
def test_whatever_the_record_of_the_outputs_holds_nothing_is_lost(line, folder, denoise):
    assert denoise(folder)[0] == 0
    good = Path("out", RECORD).read_text()
    assert {json.loads(each)["output"] for each in good.splitlines() if each} == {"a.png", "b.png", "c.png"}
    with Path("out", RECORD).open("a") as file:
        file.write(line)
    code, said = denoise(folder)
    assert (code, "3 images already up to date" in said) == (0, True)


# --- one image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_alpha_is_carried_over_and_only_the_colours_are_denoised(dtype, channels, deep):
    save_model(Path("half"), weight=0.5)
    denoiser = Denoiser("half")
    white = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    pixels = (deep / 65535 * white).astype(dtype)
    alpha = np.ascontiguousarray(pixels[..., 1])
    image = ImageFile(pixels=pixels if channels == 3 else pixels[..., 0], alpha=alpha, format="TIFF")
    denoised = denoise_image(denoiser, image)
    assert denoised.alpha is alpha
    assert denoised.pixels.dtype == dtype
    assert np.abs(denoised.pixels - (image.pixels / 2 + white / 4)).max() <= (0.51 if white > 1 else 1e-6)


def test_what_an_encoder_refuses_is_an_error_with_its_file(photo, denoise, monkeypatch):
    photo.save("a.png")

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such strides")

    monkeypatch.setattr(denoise_files, "write_image", refuse)
    code, said = denoise("a.png")
    assert (code, "a.png: cannot be written as PNG (no such strides)" in said, outputs()) == (2, True, set())


def test_images_of_the_depth_of_the_training_have_the_range_of_the_training(deep, denoise):
    save_model(Path("trained"), weight=0.5)
    manifest = json.loads(Path("trained/manifest.json").read_text())
    manifest["model"]["depth"], manifest["data"]["range"] = "uint16", [0, 4095]
    Path("trained/manifest.json").write_text(json.dumps(manifest))
    pixels = deep[..., 0] // 16
    tifffile.imwrite("camera.tif", pixels)
    code, said = denoise("camera.tif", model="trained")
    assert (code, "16 bits, 0 is black and 4095 is white" in said) == (0, True)
    assert np.abs(tifffile.imread("out/camera.tif") - (pixels / 2 + 4095 / 4)).max() <= 1
    assert np.array_equal(Denoiser(Path("trained"))(pixels), tifffile.imread("out/camera.tif"))
    tifffile.imwrite("floats.tif", (pixels / 4095).astype(np.float32))  # of another depth
    assert "float32, 0 is black and 1 is white" in denoise("floats.tif", model="trained")[1]
    for wrong in ({"depth": "int8"}, {"depth": []}, {"range": "0 1"}, {"range": [1, 0]}, {"range": [0, 10**400]}):
        damaged = {**manifest, "model": manifest["model"] | wrong, "data": manifest["data"] | wrong}
        Path("trained/manifest.json").write_text(json.dumps(damaged))
        code, said = denoise("camera.tif", model="trained", to="other")
        assert (code, "manifest.json: damaged or not ours" in said) == (2, True)
