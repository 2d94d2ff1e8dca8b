import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
import skimage.data
from fuzzing import assert_readable, damaged, fewer
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from skimage.metrics import peak_signal_noise_ratio

from model import denoise, picture_strip
from model.data.noise import parse_noise
from model.denoise import DenoiseError, Denoiser


@pytest.fixture(scope="module")
def denoiser(exported) -> Denoiser:
    return Denoiser(exported.folder)


@pytest.fixture(scope="module")
def identity(exported) -> Denoiser:
    """Its network gives its input back, so that only the tiling is left to see."""
    denoiser = Denoiser(exported.folder)
    denoiser.batch = lambda noisy: noisy.copy()
    return denoiser


@pytest.fixture(scope="module")
def noisy_mosaic(mosaic) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 30, mosaic.shape)
    return np.clip(np.rint(mosaic + noise), 0, 255).astype(np.uint8)


def test_an_image_of_the_training_size_goes_through_the_network_alone_where_it_has_the_black_frame(
    denoiser, test_images, noisy_mosaic, monkeypatch
):
    shapes = []
    network = denoiser.batch
    monkeypatch.setattr(denoiser, "batch", lambda noisy: shapes.append(noisy.shape) or network(noisy))
    framed = np.random.default_rng(0).normal(test_images[0, 0], 30).clip(0, 255).astype(np.uint8)
    denoiser(framed)
    assert shapes == [(1, 1, 32, 32)]
    shapes.clear()
    denoiser(np.ascontiguousarray(noisy_mosaic[10:42, 10:42, 0]))  # no frame there: tiles
    assert shapes == [(9, 1, 32, 32)]


# --- the folder ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported.folder, tmp_path / "model")


def test_a_flipped_bit_in_the_network_is_refused(folder):
    path = folder / "generator.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DenoiseError, match=r"generator\.onnx: its SHA-256"):
        Denoiser(folder)


def test_a_missing_network_is_named(folder):
    (folder / "generator.onnx").unlink()
    with pytest.raises(DenoiseError, match=r"generator\.onnx: cannot be read"):
        Denoiser(folder)


def test_a_folder_without_a_manifest_is_no_export(tmp_path):
    with pytest.raises(DenoiseError, match="not an export"):
        Denoiser(tmp_path)
    with pytest.raises(DenoiseError, match="not an export"):
        Denoiser(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/dev/zero", "a/generator.onnx", "..", ""])
def test_a_network_outside_the_folder_is_not_even_looked_at(name, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["file"], manifest["files"][name] = name, "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DenoiseError, match=r"manifest\.json: damaged or not ours"):
        Denoiser(folder)


def test_weights_outside_the_network_are_not_read(folder, tmp_path, monkeypatch):
    """ONNX may name other files for them; with the digest of such a network in the manifest, too. onnxruntime refuses
    small ones by itself, and reads large ones from the folder that happens to be current."""
    network = onnx.load(folder / "generator.onnx")
    onnx.save(network, tmp_path / "generator.onnx", save_as_external_data=True, location="weights", size_threshold=1024)
    monkeypatch.chdir(tmp_path)
    assert (tmp_path / "weights").exists()
    content = (tmp_path / "generator.onnx").read_bytes()
    (folder / "generator.onnx").write_bytes(content)
    (folder / "weights").write_bytes((tmp_path / "weights").read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["generator.onnx"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DenoiseError, match="onnxruntime cannot load it"):
        Denoiser(folder)


@pytest.mark.parametrize("content", [b"", b"not JSON", b"\xff\xfe", b"[]", b"{}", b'{"model": 3}', b'{"model": {}}'])
def test_a_manifest_that_is_none_is_named(content, folder):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(DenoiseError, match=r"manifest\.json: damaged or not ours"):
        Denoiser(folder)


def test_a_network_that_onnxruntime_cannot_load_is_named(folder):
    (folder / "generator.onnx").write_bytes(b"not ONNX")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["generator.onnx"] = hashlib.sha256(b"not ONNX").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DenoiseError, match="onnxruntime cannot load it"):
        Denoiser(folder)


# --- arrays ----------------------------------------------------------------------------------------------------------

SIZES = [(1, 1), (5, 3), (1, 40), (32, 32), (47, 61), (64, 64), (200, 300)]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.float16])
@pytest.mark.parametrize("colour", [False, True], ids=["grey", "RGB"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_image_keeps_its_shape_and_type(size, colour, dtype, denoiser, noisy_mosaic):
    image = noisy_mosaic[: size[0], : size[1]]
    if not colour:
        image = image[..., 0]
    if dtype != np.uint8:
        image = (image / 127.5 - 1).astype(dtype)
    denoised = denoiser(image)
    assert denoised.shape == image.shape
    assert denoised.dtype == dtype
    assert not np.array_equal(denoised, image)
    if dtype != np.uint8:
        assert -1 <= denoised.min() <= denoised.max() <= 1


def test_an_image_of_the_training_size_goes_through_the_network_as_it_is(denoiser, images):
    pixels = images.validation.clean[5, 0]
    noisy = pixels.astype(np.float32) / 127.5 - 1
    direct = denoiser.batch(noisy[None, None])[0, 0]
    np.testing.assert_allclose(denoiser(noisy), direct, rtol=0, atol=1e-6)
    np.testing.assert_allclose(denoiser(pixels), (direct + 1) * 127.5, rtol=0, atol=0.51)


def test_large_images_are_denoised_and_colours_one_by_one(denoiser, mosaic, noisy_mosaic):
    def error(image: np.ndarray) -> float:
        return float(np.abs(image.astype(float) - mosaic).mean())

    denoised = denoiser(noisy_mosaic)
    assert error(denoised) < 0.75 * error(noisy_mosaic)
    for channel in range(3):
        # batches of another size may round differently in the last bit
        alone = denoiser(np.ascontiguousarray(noisy_mosaic[..., channel]))
        np.testing.assert_allclose(denoised[..., channel].astype(int), alone.astype(int), rtol=0, atol=1)


@given(st.integers(1, 130), st.integers(1, 130), st.booleans())
def test_tiling_leaves_no_seams_at_any_size(identity, height, width, colour):
    shape = (height, width, 3) if colour else (height, width)
    image = np.random.default_rng(height * 1000 + width).integers(0, 256, shape, np.uint8)
    assert np.array_equal(identity(image), image)
    unit = (image / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(identity(unit), unit, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [-1, 1])
def test_black_and_white_stay_in_range_so_that_the_output_is_an_input_again(value, identity):
    denoised = identity(np.full((100, 100), value, np.float32))
    assert np.abs(denoised).max() <= 1
    np.testing.assert_allclose(identity(denoised), value, rtol=0, atol=1e-6)


def test_tiling_in_many_batches_gives_the_same(identity, mosaic, monkeypatch):
    monkeypatch.setattr(denoise, "_BATCH_PIXELS", 3 * 32 * 32)
    assert np.array_equal(identity(mosaic), mosaic)


def test_the_network_sees_tiles_of_its_training_size_only(exported, mosaic):
    shapes = set()
    denoiser = Denoiser(exported.folder)
    denoiser.batch = lambda noisy: shapes.add(noisy.shape[1:]) or noisy
    denoiser(mosaic)
    assert shapes == {(1, 32, 32)}


def test_a_model_of_colour_images_takes_all_channels_together(exported, mosaic):
    denoiser = Denoiser(exported.folder)
    denoiser.channels, shapes = 3, set()
    denoiser.batch = lambda noisy: shapes.add(noisy.shape[1:]) or noisy
    assert np.array_equal(denoiser(mosaic), mosaic)
    assert shapes == {(3, 32, 32)}
    with pytest.raises(DenoiseError, match="3 channels, not 2"):
        denoiser(mosaic[..., :2])


def test_a_model_of_colour_images_takes_a_grey_one_three_times_and_gives_the_mean(exported, mosaic):
    denoiser, given = Denoiser(exported.folder), []
    denoiser.channels = 3
    shifts = np.array([0.0, 0.02, 0.07], np.float32)[:, None, None]  # of each channel
    denoiser.batch = lambda noisy: given.append(noisy) or np.clip(noisy * 0.5 + shifts, -1, 1)
    grey = mosaic[..., 0]
    for image in (grey, grey[..., None]):
        denoised = denoiser(image)
        assert (denoised.shape, denoised.dtype) == (image.shape, np.uint8)
        expected = ((grey / 127.5 - 1) * 0.5 + shifts.mean() + 1) * 127.5
        assert np.abs(denoised.reshape(grey.shape) - expected).max() <= 0.5 + 1e-3
    assert all((batch[:, :1] == batch).all() for batch in given)


def test_an_image_of_16_bits_goes_through_floats_alone(exported, mosaic):
    denoiser = Denoiser(exported.folder)
    denoiser.batch = lambda noisy: noisy.copy()
    deep = np.random.default_rng(0).integers(0, 65536, mosaic.shape, np.uint16)
    assert np.array_equal(denoiser(deep), deep)  # what went through 8 bits would be wrong by up to 128
    denoiser.batch = lambda noisy: noisy * np.float32(0.5)
    expected = ((deep.astype(float) / 32767.5 - 1) * 0.5 + 1) * 32767.5
    assert np.abs(denoiser(deep) - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((4, 4), np.int16), "int16"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros((2, 4, 4, 1), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((0, 4), np.uint8), "shape"),
        (np.full((4, 4), 255.0), r"\[-1, 1\]"),
        (np.full((4, 4), np.nan), "finite"),
    ],
    ids=["int16", "bool", "four axes", "one axis", "empty", "float to 255", "NaN"],
)
def test_an_array_that_is_no_image_is_refused(image, reason, denoiser):
    with pytest.raises(DenoiseError, match=reason):
        denoiser(image)


def test_fixed_noise_is_removed_from_every_test_image(denoiser, test_images):
    clean = test_images.astype(np.float32) / 127.5 - 1
    noisy = parse_noise("gaussian:30").fixed(clean, seed=4)
    before, after = (np.abs(x - clean).mean(axis=(1, 2, 3)) for x in (noisy, denoiser.batch(noisy)))
    assert (after < before).mean() > 0.95


# --- seams -----------------------------------------------------------------------------------------------------------


def error_at_lines(image: np.ndarray, clean: np.ndarray, spacing: int) -> float:
    """Mean squared error of the pixels on both sides of the lines that are `spacing` apart, over that elsewhere."""
    error = np.square(image.astype(float) - clean)
    beside = np.isin(np.arange(len(clean)) % spacing, (0, spacing - 1))
    beside[[0, -1]] = False  # the photograph's own edge is no seam
    at_lines = beside[:, None] | beside
    return float(error[at_lines].mean() / error[~at_lines].mean())


def test_a_whole_photograph_gains_as_much_as_its_crops_and_no_more_is_lost_where_tiles_meet(denoiser):
    clean = np.ascontiguousarray(skimage.data.camera()[::2, ::2])
    noisy = np.clip(np.rint(np.random.default_rng(0).normal(clean, 30)), 0, 255).astype(np.uint8)
    crops = noisy.reshape(8, 32, 8, 32).swapaxes(1, 2).reshape(64, 1, 32, 32)
    alone = picture_strip.to_uint8(denoiser.batch(crops.astype(np.float32) / 127.5 - 1))
    joined = alone.reshape(8, 8, 32, 32).swapaxes(1, 2).reshape(256, 256)
    whole = denoiser(noisy)
    before, by_crops, at_once = (peak_signal_noise_ratio(clean, image) for image in (noisy, joined, whole))
    assert at_once - before >= by_crops - before > 2
    assert error_at_lines(joined, clean, 32) > 1.3  # the measure sees seams where there are some
    assert error_at_lines(whole, clean, 16) < 1.1  # tiles begin every 16 pixels


# --- whatever a network is -------------------------------------------------------------------------------------------


def network(nodes, weights=(), *, shape=("n", 1, "h", "w"), kind=onnx.TensorProto.FLOAT, opset=18, gives=None) -> bytes:
    taken = [helper.make_tensor_value_info("noisy", kind, shape)]
    given_back = [helper.make_tensor_value_info("denoised", gives or kind, None)]
    graph = helper.make_graph(list(nodes), "graph", taken, given_back, list(weights))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return made.SerializeToString()


def _node(kind: str, *inputs: str, **options: object) -> onnx.NodeProto:
    return helper.make_node(kind, ["noisy", *inputs], ["denoised"], **options)


def _constant(value: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.full((1, 1, 1, 1), value, np.float32), "c")


def _external() -> onnx.TensorProto:
    tensor = _constant(0.0)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    return tensor


NETWORKS = {
    "the input itself": (network([_node("Identity")]), ""),
    "NaN weights": (network([_node("Mul", "c")], [_constant(np.nan)]), "not finite"),
    "infinite weights": (network([_node("Add", "c")], [_constant(np.inf)]), "not finite"),
    "external data": (network([_node("Add", "c")], [_external()]), "cannot load it"),
    "an opset to come": (network([_node("Identity")], opset=9_999), "cannot load it"),
    "no such operator": (network([_node("Denoise")]), "cannot load it"),
    "three axes": (network([_node("Identity")], shape=("n", "h", "w")), "must take one input"),
    "whole numbers": (network([_node("Identity")], kind=onnx.TensorProto.INT64), "must take one input"),
    "three channels": (network([_node("Identity")], shape=("n", 3, "h", "w")), "cannot run it"),
    "another size": (network([_node("Transpose", perm=[1, 0, 2, 3])]), "not an image"),
    "a shape": (network([_node("Shape")], gives=onnx.TensorProto.INT64), "not an image"),
}


def with_network(exported, folder, content: bytes):
    """The export, with another network whose digest is right."""
    shutil.copytree(exported.folder, folder)
    (folder / "generator.onnx").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["generator.onnx"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_denoises_nothing_is_refused_with_the_reason(name, exported, tmp_path, monkeypatch):
    content, reason = NETWORKS[name]
    (tmp_path / "secret").write_bytes(bytes(100))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder, image = with_network(exported, tmp_path / "here" / "model", content), np.full((40, 33), 7, np.uint8)
    if not reason:
        assert np.array_equal(Denoiser(folder)(image), image)
        return
    with pytest.raises(DenoiseError) as refused:
        Denoiser(folder)(image)
    assert_readable(refused.value, reason)


@given(data=st.data())
@fewer(3)
def test_any_network_denoises_or_is_refused(exported, tmp_path_factory, data):
    right = (exported.folder / "generator.onnx").read_bytes()
    content = data.draw(st.sampled_from([right, *(content for content, _ in NETWORKS.values())]).flatmap(damaged))
    folder = with_network(exported, tmp_path_factory.mktemp("fuzzed") / "model", content)
    try:
        denoised = Denoiser(folder)(np.full((40, 33), 7, np.uint8))
    except DenoiseError as error:
        assert_readable(error, "generator.onnx")
    else:
        assert (denoised.shape, denoised.dtype) == ((40, 33), np.uint8)
