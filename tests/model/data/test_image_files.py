"""Image files as people have them: what is read of them is what Pillow, tifffile and the formats' standards say."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from fuzzing import assert_readable, damaged
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps
from PIL.JpegImagePlugin import get_sampling

from model.data import image_reading
from model.data.image_formats import IMAGE_SUFFIXES, ImageError, ImageFile, png_chunks
from model.data.image_reading import read_image, read_pages
from model.data.image_writing import format_problem, output_format, write_image
from model.data.tiff import write_tiff


@pytest.fixture(scope="module")
def picture(mosaic) -> Image.Image:
    return Image.fromarray(mosaic[:50, :70])


@pytest.fixture(scope="module")
def deep(mosaic) -> np.ndarray:
    """(50, 70, 3) uint16 whose low bytes matter."""
    return mosaic[:50, :70].astype(np.uint16) * 256 + np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint16)


def as_pillow(image: ImageFile) -> Image.Image:
    parts = [np.atleast_3d(image.pixels), *([image.alpha[..., None]] if image.alpha is not None else [])]
    return Image.fromarray(np.concatenate(parts, axis=2).squeeze())


def refused(path) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- kinds of pixels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "suffix", "opened"),
    [
        *((mode, ".png", mode) for mode in ("L", "RGB", "LA", "RGBA")),
        ("1", ".png", "L"),
        ("P", ".png", "RGB"),
        ("L", ".jpg", "L"),
        ("RGB", ".jpg", "RGB"),
        ("CMYK", ".jpg", "RGB"),
        ("RGB", ".tif", "RGB"),
        ("RGBA", ".tif", "RGBA"),
        ("CMYK", ".tif", "RGB"),
        ("RGB", ".webp", "RGB"),
        ("RGB", ".bmp", "RGB"),
        ("L", ".pgm", "L"),
        ("1", ".pbm", "L"),
        ("RGB", ".ppm", "RGB"),
        ("P", ".gif", "RGB"),
        ("L", ".jp2", "L"),
        ("RGB", ".jp2", "RGB"),
        ("RGB", ".avif", "RGB"),
    ],
)
def test_an_image_file_is_opened_as_grey_or_colour(mode, suffix, opened, picture, tmp_path):
    path = tmp_path / f"image{suffix}"
    picture.convert(mode).save(path)
    image = as_pillow(read_image(path))
    assert (image.mode, image.size) == (opened, picture.size)
    with Image.open(path) as saved:
        assert np.array_equal(np.asarray(image), np.asarray(saved.convert(opened)))


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_colour_that_stands_for_transparency_becomes_alpha(mode, picture, tmp_path):
    path, image = tmp_path / "image.png", picture.convert(mode)
    image.save(path, transparency=image.getpixel((3, 4)))
    with Image.open(path) as saved:
        expected = np.asarray(saved.convert("RGBA"))[..., 3]
    assert np.array_equal(read_image(path).alpha, expected)
    assert expected[4, 3] == 0 < expected.max()


def _png(pixels: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """16 bits, by the standard (ISO 15948) alone: big-endian, each row after filter type 0."""
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    written = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")):
        written += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return written


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_of_16_bits_keeps_all_of_them(channels, deep, tmp_path):
    path, pixels = tmp_path / "deep.png", np.dstack([deep, deep[..., 0]])[..., :channels]
    path.write_bytes(_png(pixels))
    image = read_image(path)
    parts = [np.atleast_3d(image.pixels), *([image.alpha[..., None]] if image.alpha is not None else [])]
    assert image.pixels.dtype == np.uint16
    assert np.array_equal(np.concatenate(parts, axis=2), pixels)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_deep_tiff_is_what_was_written(channels, compression, dtype, deep, tmp_path):
    path = tmp_path / "deep.tif"
    pixels = (deep if channels == 3 else deep[..., 0]).astype(dtype)
    tifffile.imwrite(path, pixels, compression=compression, photometric="rgb" if channels == 3 else None)
    image = read_image(path)
    assert (image.pixels.dtype, image.format) == (dtype, "TIFF")
    assert np.array_equal(image.pixels, pixels)


@pytest.mark.parametrize("kind", ["planes apart", "tiles", "big-endian", "BigTIFF", "white is zero", "with alpha"])
def test_a_deep_tiff_of_a_rarer_kind_is_what_was_written(kind, deep, tmp_path):
    path = tmp_path / "deep.tif"
    pixels, options = deep, {"photometric": "rgb"}
    if kind == "planes apart":
        pixels, options = deep.transpose(2, 0, 1), {**options, "planarconfig": "separate"}
    elif kind == "tiles":
        options |= {"tile": (32, 32)}
    elif kind == "white is zero":
        pixels, options = 65535 - deep[..., 0], {"photometric": "miniswhite"}
    elif kind == "with alpha":
        pixels, options = np.dstack([deep, deep[..., 0]]), {**options, "extrasamples": ["unassalpha"]}
    of_file = {"byteorder": ">" if kind == "big-endian" else "<", "bigtiff": kind == "BigTIFF"}
    tifffile.imwrite(path, pixels, **options, **of_file)
    image = read_image(path)
    assert np.array_equal(image.pixels, deep[..., 0] if kind == "white is zero" else deep)
    assert (image.alpha is not None) == (kind == "with alpha")


def test_grey_of_16_bits_and_floats_are_what_pillow_reads(deep, tmp_path):
    grey = deep[..., 0]
    for name, pixels in {"a.png": grey, "a.tif": grey, "f.tif": (grey / 65535).astype(np.float32)}.items():
        Image.fromarray(pixels).save(tmp_path / name)
        with Image.open(tmp_path / name) as saved:
            assert np.array_equal(read_image(tmp_path / name).pixels, np.asarray(saved))


@pytest.mark.parametrize("white", [65535, 4095, 300])
def test_a_deep_pgm_is_what_pillow_reads_and_a_deep_ppm_is_not_cut(white, deep, tmp_path):
    words = (deep.astype(int) % (white + 1)).astype(">u2")
    head = b"\n# by a camera\n70 50\n%d\n" % white
    (tmp_path / "a.pgm").write_bytes(b"P5" + head + np.ascontiguousarray(words[..., 0]).tobytes())
    (tmp_path / "a.ppm").write_bytes(b"P6" + head + words.tobytes())
    with Image.open(tmp_path / "a.pgm") as saved:
        assert np.array_equal(read_image(tmp_path / "a.pgm").pixels, np.asarray(saved))
    assert np.array_equal(read_image(tmp_path / "a.ppm").pixels[..., 0], read_image(tmp_path / "a.pgm").pixels)
    (tmp_path / "letters.ppm").write_bytes(b"P3" + head + b" ".join(b"%d" % word for word in words.ravel()))
    assert "above 255" in refused(tmp_path / "letters.ppm")


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint32, np.float16, np.float64, np.complex64])
def test_a_depth_that_is_none_of_ours_is_refused_with_what_to_do(dtype, tmp_path):
    tifffile.imwrite(tmp_path / "odd.tif", np.ones((50, 70), dtype))
    told = refused(tmp_path / "odd.tif")
    assert f"1 x {np.dtype(dtype)} of {8 * np.dtype(dtype).itemsize} bits a pixel (MINISBLACK); convert it to 8" in told


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_of_many_samples_a_pixel_none_is_left_out_without_a_word(dtype, deep, tmp_path):
    """Pillow gives the first three of five, and of four, where nobody says that the fourth is alpha."""
    samples = np.dstack([deep, deep]).astype(dtype)
    tifffile.imwrite(tmp_path / "five.tif", samples[..., :5], photometric="rgb")
    assert f"5 x {np.dtype(dtype)} of" in refused(tmp_path / "five.tif")
    tifffile.imwrite(tmp_path / "four.tif", samples[..., :4], photometric="rgb", extrasamples=["unspecified"])
    image = read_image(tmp_path / "four.tif")
    assert np.array_equal(np.dstack([image.pixels, image.alpha]), samples[..., :4])


def test_jpeg_2000_and_avif_of_more_than_8_bits_are_refused_rather_than_cut(deep, tmp_path):
    Image.fromarray(np.ascontiguousarray(deep[..., 0])).save(tmp_path / "deep.jp2")
    (tmp_path / "deep.avif").write_bytes(image_reading.imagecodecs.avif_encode(deep >> 6, bitspersample=10))
    assert "JPEG2000 of uint16; convert it" in refused(tmp_path / "deep.jp2")
    assert "AVIF of uint16; convert it" in refused(tmp_path / "deep.avif")


# --- orientation, and what else a file says --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_pillow_turns_it(orientation, suffix, picture, tmp_path):
    path, exif = tmp_path / f"turned{suffix}", Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif)
    with Image.open(path) as saved:
        expected = np.asarray(ImageOps.exif_transpose(saved))
    assert np.array_equal(read_image(path).pixels, expected)


def test_an_image_of_16_bits_is_turned_with_its_alpha(deep, tmp_path):
    pixels = np.dstack([deep, deep[..., 0]])
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"], "resolution": (200, 100)}
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options, extratags=[(0x0112, "H", 1, 6, True)])
    image = read_image(tmp_path / "a.tif")
    expected = np.rot90(pixels, -1)
    assert np.array_equal(np.dstack([image.pixels, image.alpha]), expected)
    assert image.resolution[:2] == (100, 200)


def test_an_orientation_in_xmp_alone_is_followed(picture, tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    picture.save(tmp_path / "a.jpg", xmp=xmp)
    assert read_image(tmp_path / "a.jpg").pixels.shape == (70, 50, 3)


def test_exif_is_kept_without_the_thumbnail_and_for_the_upright_image(picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x013B] = 6, "ACME", "José"
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0xA002: 70, 0xA003: 50, 0x9286: b"ASCII\0\0\0hello"})
    exif.get_ifd(0x8825).update({1: "N", 2: (60.0, 1.0, 2.0)})
    content = bytearray(exif.tobytes()[6:])
    thumbnail = struct.pack(">HHHIIHHIII", 2, 0x0201, 4, 1, len(content) + 30, 0x0202, 4, 1, 9, 0) + b"a picture"
    after = 10 + 12 * int.from_bytes(content[8:10], "big")
    content[after : after + 4] = len(content).to_bytes(4, "big")
    picture.save(tmp_path / "a.jpg", exif=b"Exif\0\0" + bytes(content) + thumbnail)
    with Image.open(tmp_path / "a.jpg") as saved:
        assert saved.getexif().get_ifd(ExifTags.IFD.IFD1) == {0x0201: len(content) + 30, 0x0202: 9}
    found = Image.Exif()
    found.load(read_image(tmp_path / "a.jpg").exif)
    assert (found[0x0112], found[0x010F]) == (1, "ACME")
    inner = found.get_ifd(0x8769)
    assert (float(inner[0x829A]), inner[0xA002], inner[0xA003], inner[0x9286]) == (
        0.01, 50, 70, b"ASCII\0\0\0hello",
    )  # fmt: skip
    assert found.get_ifd(0x8825)[1] == "N"
    assert not found.get_ifd(ExifTags.IFD.IFD1)
    assert b"a picture" not in read_image(tmp_path / "a.jpg").exif


@pytest.mark.parametrize("damaged", [b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x7f" * 20, b"http://ns.adobe.com/", b"MM"])
def test_damaged_exif_is_left_out_and_the_image_is_read(damaged, picture, tmp_path):
    picture.save(tmp_path / "a.jpg", exif=b"Exif\0\0" + damaged)
    image = read_image(tmp_path / "a.jpg")
    assert image.pixels.shape == (50, 70, 3)
    assert image.exif is None


def test_a_profile_is_kept_where_it_is_one_of_the_pixels(picture, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for suffix in (".jpg", ".png", ".tif", ".webp"):
        picture.save(tmp_path / f"a{suffix}", icc_profile=profile, dpi=(300, 150))
        image = read_image(tmp_path / f"a{suffix}")
        assert image.profile == profile
        if suffix != ".webp":
            across, down, unit = image.resolution
            assert (round(across), round(down), unit) == (300, 150, 2)
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((9, 9, 3), np.uint16), photometric="rgb", iccprofile=profile)
    assert read_image(tmp_path / "deep.tif").profile == profile
    of_inks = profile[:16] + b"CMYK" + profile[20:]
    picture.convert("CMYK").save(tmp_path / "inks.tif", icc_profile=of_inks)
    assert read_image(tmp_path / "inks.tif").profile is None


@pytest.mark.parametrize("kind", ["iCCP", "zTXt", "gAMA"])
@pytest.mark.parametrize("depth", [8, 16])
def test_a_png_is_read_though_something_beside_its_pixels_is_damaged(depth, kind, deep, tmp_path):
    """Browsers show them. Pillow's trackers have many: python-pillow/Pillow issues 2445, 4472, 4592, 6843, 8363."""
    path, pixels = tmp_path / "a.png", deep if depth == 16 else (deep >> 8).astype(np.uint8)
    write_image(ImageFile(pixels=pixels, format="PNG"), path, "PNG")
    content = path.read_bytes()
    data = {"iCCP": b"ICC\0\0" + b"x" * 9, "zTXt": b"a\0\0" + zlib.compress(bytes(2 << 20)), "gAMA": b"\1"}[kind]
    chunk = struct.pack(">I", len(data)) + kind.encode() + data
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]) ^ (kind == "iCCP"))  # of the profile the checksum, too
    path.write_bytes(content[:33] + chunk + content[33:])
    image = read_image(path)
    assert np.array_equal(image.pixels, pixels)
    path.write_bytes(content[:33] + chunk + content[33:-40])
    refused(path)


# --- several pictures in a file --------------------------------------------------------------------------------------


def test_of_a_phones_file_the_first_picture_is_read(picture, tmp_path):
    picture.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[picture.resize((35, 25))])
    picture.save(tmp_path / "b.jpg")
    image = read_image(tmp_path / "a.jpg")
    assert np.array_equal(image.pixels, read_image(tmp_path / "b.jpg").pixels)
    assert (image.format, image.notes) == ("JPEG", (image_reading._SECOND_PICTURE,))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".gif"])
def test_several_frames_are_refused(suffix, picture, tmp_path):
    path = tmp_path / f"moving{suffix}"
    picture.save(path, save_all=True, append_images=[picture.rotate(90)])
    assert "several frames" in refused(path)


def test_the_pages_of_a_tiff_are_read_one_after_another(deep, tmp_path):
    with tifffile.TiffWriter(tmp_path / "stack.tif") as file:
        for page in (deep[..., 0], deep[:20, :30, 1], (deep[..., 2] >> 8).astype(np.uint8)):
            file.write(page, contiguous=False)
    assert "several frames" in refused(tmp_path / "stack.tif")
    first, second, third = (image.pixels for image in read_pages(tmp_path / "stack.tif"))
    assert np.array_equal(first, deep[..., 0])
    assert np.array_equal(second, deep[:20, :30, 1])
    assert np.array_equal(third, deep[..., 2] >> 8)


@pytest.mark.parametrize("is_first", [False, True])
def test_a_thumbnail_in_a_tiff_is_no_frame(is_first, deep, tmp_path):
    pages = [(deep, {}), (deep[::5, ::5], {"subfiletype": 1})]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page, options in reversed(pages) if is_first else pages:
            file.write(page, photometric="rgb", **options)
    assert np.array_equal(read_image(tmp_path / "a.tif").pixels, deep)


def test_the_frames_of_a_tiff_are_not_all_read_to_count_them(picture, tmp_path, monkeypatch):
    path, read = tmp_path / "long.tif", []
    picture.save(path, save_all=True, append_images=[picture] * 50)
    page = tifffile.TiffPage.__init__
    monkeypatch.setattr(tifffile.TiffPage, "__init__", lambda *given, **named: read.append(1) or page(*given, **named))
    assert "several frames" in refused(path)
    assert len(read) < 10


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".eps", ".ico", ".pdf", ".tga", ".im", ".sgi"])
def test_a_format_that_is_not_trusted_is_refused_whatever_it_is_called(suffix, picture, tmp_path):
    picture.convert("RGB").save(tmp_path / f"image{suffix}")
    path = (tmp_path / f"image{suffix}").rename(tmp_path / "image.png")
    assert "not an image of the formats" in refused(path)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_a_file_cut_short_is_refused(suffix, picture, tmp_path):
    path = tmp_path / f"cut{suffix}"
    form = {".pbm": "PPM", ".pgm": "PPM", ".jpe": "JPEG", ".pnm": "PPM"}.get(suffix)
    picture.save(path, form)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_a_deep_file_cut_short_is_refused(compression, deep, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", compression=compression)
    (tmp_path / "a.png").write_bytes(_png(deep))
    (tmp_path / "a.ppm").write_bytes(b"P6 70 50 65535\n" + deep.astype(">u2").tobytes())
    for name in ("a.tif", "a.png", "a.ppm"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "cannot be read" in refused(path)


@pytest.mark.parametrize("content", [b"", b"just text", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "magic only"])
def test_a_file_that_is_no_image_is_refused(content, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    assert "not an image of the formats" in refused(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    assert "cannot be read" in refused(tmp_path / "missing.png")
    assert "is not a file" in refused(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_too_many_pixels_are_refused_by_the_header_alone(suffix, picture, deep, tmp_path, monkeypatch):
    path = tmp_path / f"image{suffix}"
    picture.save(path)
    monkeypatch.setattr(image_reading, "MAX_PIXELS", 50 * 70)
    assert read_image(path).pixels.shape == (50, 70, 3)
    monkeypatch.setattr(image_reading, "MAX_PIXELS", 50 * 70 - 1)
    if suffix == ".png":
        path.write_bytes(path.read_bytes()[:200])  # the pixels are not there
    assert "70x50 is above 3499 pixels" in refused(path)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    assert "70x50 is above 3499 pixels" in refused(tmp_path / "deep.tif")


def test_a_huge_size_in_a_small_file_is_refused(tmp_path):
    content = io.BytesIO()
    Image.new("L", (1, 1)).save(content, "PNG")
    png = bytearray(content.getvalue())
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    (tmp_path / "bomb.png").write_bytes(png)
    refused(tmp_path / "bomb.png")


@pytest.mark.parametrize("form_and_mode", ["PNG P", "PNG RGB", "TIFF P", "TIFF RGBA", "JPEG L"])
def test_a_damaged_file_is_an_image_or_a_named_mistake(form_and_mode, picture, tmp_path):
    form, mode = form_and_mode.split()
    buffer, path, draw = io.BytesIO(), tmp_path / "image", np.random.default_rng(0)
    picture.crop((0, 0, 30, 20)).convert(mode).save(buffer, form)
    content = buffer.getvalue()
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(content)
        for position in draw.integers(min(len(damaged), 200), size=2):
            damaged[position] = draw.integers(256)
        # half of the damage where TIFF has its directory: at the end
        damaged[-int(draw.integers(1, 200))] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            read_image(path)
            outcomes.add("image")
        except ImageError as error:
            outcomes.add("refused" if str(path) in str(error) else f"unnamed: {error}")
    assert "refused" in outcomes
    assert outcomes <= {"refused", "image"}


# --- out -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _described() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x010F], exif[0x0131] = 1, "5 \u00b5m".encode(), "ACME", "raw 1.0"
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0x9003: "2026:01:02 03:04:05"})
    exif.get_ifd(0x8825).update({1: "N", 2: (60.0, 1.0, 2.0)})
    return exif.tobytes()


def _pixels(deep: np.ndarray, depth: str, mode: str) -> dict[str, np.ndarray | None]:
    white = {"uint8": 255, "uint16": 65535, "float32": 1.0}[depth]
    image = deep if depth == "uint16" else (deep / 65535 * white).astype(depth)
    return {
        "pixels": image if mode.startswith("RGB") else np.ascontiguousarray(image[..., 0]),
        "alpha": np.ascontiguousarray(image[..., 1]) if mode.endswith("A") else None,
    }


FORMS = [
    *(("PNG", depth, mode) for depth in ("uint8", "uint16") for mode in ("L", "LA", "RGB", "RGBA")),
    *(("TIFF", depth, mode) for depth in ("uint8", "uint16", "float32") for mode in ("L", "LA", "RGB", "RGBA")),
    *(("WEBP", "uint8", mode) for mode in ("RGB", "RGBA")),
    *(("PPM", depth, mode) for depth in ("uint8", "uint16") for mode in ("L", "RGB")),
    ("PPM", "float32", "L"),
    *(("BMP", "uint8", mode) for mode in ("L", "RGB")),
]


@pytest.mark.parametrize("written", FORMS, ids="-".join)
def test_what_is_written_is_read_again_bit_for_bit_with_all_that_it_says(written, deep, profile, tmp_path):
    form, depth, mode = written
    of_pixels = profile if mode.startswith("RGB") else profile[:16] + b"GRAY" + profile[20:]
    image = ImageFile(
        **_pixels(deep, depth, mode), format=form, profile=of_pixels, resolution=(300, 150, 2), exif=_described()
    )
    assert not format_problem(image, form)
    write_image(image, tmp_path / "a", form)
    again = read_image(tmp_path / "a")
    assert (again.pixels.dtype, again.format) == (image.pixels.dtype, form)
    assert np.array_equal(again.pixels, image.pixels)
    assert (again.alpha is None and image.alpha is None) or np.array_equal(again.alpha, image.alpha)
    if form in ("PNG", "TIFF", "WEBP"):
        assert (again.profile, again.exif) == (image.profile, image.exif)
    if form in ("PNG", "TIFF", "BMP", "WEBP"):
        assert [round(part) for part in again.resolution] == [300, 150, 2]
    if (form, depth) in (("TIFF", "uint16"), ("TIFF", "float32"), ("PPM", "uint16")):
        return  # which Pillow reads in part
    with Image.open(tmp_path / "a") as seen:  # what others see
        if form != "PNG" or depth == "uint8":
            assert np.array_equal(np.asarray(seen), np.asarray(as_pillow(image)))
        if form in ("PNG", "TIFF", "WEBP"):
            assert seen.getexif().get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05"
            assert seen.getexif().get_ifd(0x8825)[1] == "N"


def test_exif_of_a_deep_tiff_is_what_tifffile_reads(deep, tmp_path):
    write_image(ImageFile(pixels=deep, format="TIFF", exif=_described()), tmp_path / "a.tif", "TIFF")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        tags = file.pages[0].tags
        assert tags["ExifTag"].value["DateTimeOriginal"] == "2026:01:02 03:04:05"
        assert tags["GPSTag"].value["GPSLatitudeRef"] == "N"
        assert (tags["ImageDescription"].value, tags["Make"].value) == ("5 \u00b5m", "ACME")
        assert np.array_equal(file.asarray(), deep)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [60, 98])
def test_a_jpeg_is_written_with_the_quantisation_and_subsampling_it_came_with(quality, subsampling, picture, tmp_path):
    picture.save(tmp_path / "in.jpg", quality=quality, subsampling=subsampling)
    write_image(read_image(tmp_path / "in.jpg"), tmp_path / "out.jpg", "JPEG")
    with Image.open(tmp_path / "in.jpg") as before, Image.open(tmp_path / "out.jpg") as after:
        assert after.quantization == before.quantization
        assert get_sampling(after) == get_sampling(before) == subsampling


def test_quality_is_for_jpeg_and_for_webp_that_may_lose(picture, tmp_path):
    image = ImageFile(pixels=np.asarray(picture), format="PNG")
    sizes = {}
    for form, quality in (("JPEG", 20), ("JPEG", None), ("WEBP", 20), ("WEBP", None)):
        write_image(image, tmp_path / "a", form, quality=quality)
        sizes[form, quality] = (tmp_path / "a").stat().st_size
    assert sizes["JPEG", 20] < sizes["JPEG", None]
    assert sizes["WEBP", 20] < sizes["WEBP", None]


def test_what_the_numbers_of_a_png_mean_is_kept(deep, tmp_path):
    """Without a profile it is in chunks of their own: an image of linear light, as here, would look far too dark."""
    linear = [(b"gAMA", struct.pack(">I", 100_000)), (b"cICP", bytes((9, 8, 0, 1)))]
    (tmp_path / "in.png").write_bytes(_png(deep, *linear))
    write_image(read_image(tmp_path / "in.png"), tmp_path / "out.png", "PNG")
    chunks = {kind: chunk[8:-4] for kind, chunk in png_chunks((tmp_path / "out.png").read_bytes())}
    assert {kind: chunks[kind] for kind, _ in linear} == dict(linear)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "zstd"])
def test_a_tiff_is_compressed_as_it_came(compression, deep, tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", deep, compression=compression, photometric="rgb")
    write_image(read_image(tmp_path / "in.tif"), tmp_path / "out.tif", "TIFF")
    with tifffile.TiffFile(tmp_path / "in.tif") as before, tifffile.TiffFile(tmp_path / "out.tif") as after:
        assert after.pages[0].compression == before.pages[0].compression


def test_a_stack_of_a_microscope_keeps_its_pages_and_its_scale(deep, tmp_path):
    stack = np.ascontiguousarray(deep.transpose(2, 0, 1))
    resolution = {"resolution": (2.5, 2.5), "metadata": {"spacing": 0.5, "unit": "um", "axes": "ZYX"}}
    tifffile.imwrite(tmp_path / "in.tif", stack, imagej=True, **resolution)
    write_tiff(read_pages(tmp_path / "in.tif"), tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "in.tif") as before, tifffile.TiffFile(tmp_path / "out.tif") as after:
        assert np.array_equal(after.asarray(), stack)
        assert after.imagej_metadata == before.imagej_metadata
        assert after.series[0].axes == "ZYX"
        for name in ("XResolution", "ResolutionUnit"):
            assert after.pages[0].tags[name].value == before.pages[0].tags[name].value


def test_colours_that_alpha_was_multiplied_into_are_taken_apart_as_pillow_does(deep, tmp_path):
    pixels = (np.dstack([deep, deep[..., 0]]) >> 8).astype(np.uint8)
    pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])
    for name, of in {"a.tif": pixels, "b.tif": pixels.astype(np.uint16) * 257}.items():
        tifffile.imwrite(tmp_path / name, of, photometric="rgb", extrasamples=["assocalpha"])
    with Image.open(tmp_path / "a.tif") as saved:
        expected = np.asarray(saved.convert("RGBA")).astype(float)
    seen = expected[..., 3] > 0
    for name, scale in {"a.tif": 1, "b.tif": 257}.items():
        image = read_image(tmp_path / name)
        assert np.abs(image.pixels / scale - expected[..., :3])[seen].max() <= 1
        assert np.array_equal(image.alpha / scale, expected[..., 3])


@pytest.mark.parametrize(
    ("form", "depth", "mode", "told"),
    [
        ("JPEG", "uint8", "RGBA", "JPEG has no transparency, as the image has; PNG, TIFF and WEBP have"),
        ("JPEG", "uint16", "RGB", "JPEG has no 16 bits a channel, as the image has; PNG and TIFF and PPM have"),
        ("WEBP", "uint16", "RGB", "WEBP has no 16 bits"),
        ("PNG", "float32", "L", "PNG has no floats a channel, as the image has; TIFF and PPM have"),
        ("BMP", "uint8", "RGBA", "BMP has no transparency"),
    ],
)
def test_what_a_format_cannot_hold_is_told(form, depth, mode, told, deep):
    assert told in format_problem(ImageFile(**_pixels(deep, depth, mode), format="TIFF"), form)


def test_the_format_of_an_output_is_the_inputs_or_one_that_loses_nothing(deep):
    def form(of: str, depth: str, mode: str) -> str:
        return output_format(ImageFile(**_pixels(deep, depth, mode), format=of))

    assert [form(of, "uint8", "RGB") for of in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM")] == [
        "PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM"
    ]  # fmt: skip
    assert [form(of, "uint8", "RGB") for of in ("GIF", "AVIF", "JPEG2000")] == ["PNG", "PNG", "PNG"]
    assert (form("BMP", "uint8", "RGBA"), form("PPM", "float32", "L")) == ("PNG", "PPM")


# --- whatever a file holds -------------------------------------------------------------------------------------------


def _saved(form: str, mode: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


IMAGES = [
    *(_saved("PNG", mode) for mode in ("1", "P", "L", "LA", "RGB", "RGBA")),
    *(_saved("TIFF", mode, compression=way) for mode in ("L", "RGB", "CMYK") for way in ("raw", "tiff_lzw", "jpeg")),
    *(_saved("JPEG", mode, progressive=how) for mode in ("L", "RGB", "CMYK") for how in (False, True)),
    *(_saved("WEBP", mode, lossless=how) for mode in ("RGB", "RGBA") for how in (False, True)),
]


def _deep_tiff(**options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16), **options)
    return buffer.getvalue()


DEEP = [
    _png(np.random.default_rng(0).integers(0, 65536, (20, 30, 3))),
    b"P6 30 20 65535\n" + bytes(range(240)) * 15,
    *(_deep_tiff(photometric="rgb", compression=way) for way in (None, "lzw", "zlib")),
]


@given(content=st.binary(max_size=200) | st.sampled_from(IMAGES + DEEP).flatmap(damaged))
def test_any_bytes_are_an_image_or_an_image_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzzed") / "image.png"
    path.write_bytes(content)
    try:
        image = read_image(path)
    except ImageError as error:
        assert_readable(error, str(path))
    else:
        assert image.pixels.dtype in (np.uint8, np.uint16, np.float32)
        assert image.pixels.shape[2:] in ((), (3,))
        assert image.alpha is None or image.alpha.shape == image.pixels.shape[:2]
