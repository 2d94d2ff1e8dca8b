import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.common.errors import ConfigError
from model.config import FIELDS, TrainConfig, parse_setting

BROKEN = {
    "loss": ["l2", None],
    "adversarial": ["wasserstein", None],
    "output": ["skip"],
    "upsample": ["bilinear"],
    "norm": ["layer", None],
    "full_resolution_skip": [1, "true", None],
    "depth": [1, 9, 3.0],
    "blocks": [-1, 1.0, None],
    "lr_schedule": ["linear"],
    "precision": ["float16"],
    "l1_weight": [0.0, math.inf],
    "ssim_weight": [-1.0],
    "mse_weight": [0.0, math.nan],
    "adversarial_weight": [0.0, -1],
    "lr_g": [0.0, 1.5, math.nan, "0.1", None],
    "lr_d": [-2e-4, 2],
    "beta1": [1.0, -0.1],
    "beta2": [1.0],
    "dropout": [1.0, -0.5],
    "grad_clip": [-2.0, 0.5, math.inf],
    "average_decay": [1.0],
    "batch_size": [0, 1, 64.0],
    "epochs": [0, True],
    "images_per_epoch": [0, 10.5],
    "width": [0, 32.0],
    "patch": [70, 15],
    "seed": [-1],
}


def mistakes(**settings: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**settings)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BROKEN.items() for value in values])
def test_a_broken_rule_is_named_with_its_value(name, value):
    [mistake] = mistakes(**{name: value})
    assert mistake.startswith(f"{name}={value!r}: ")


def test_every_setting_has_a_rule():
    assert set(BROKEN) == set(FIELDS)


def test_all_broken_rules_are_named_in_one_message():
    settings = {name: values[0] for name, values in BROKEN.items()}
    assert {mistake.partition("=")[0] for mistake in mistakes(**settings)} == set(FIELDS)


def test_one_image_a_batch_is_pix2pixs_own_setting_and_needs_another_norm_than_batch():
    assert TrainConfig(batch_size=1, norm="instance").batch_size == 1
    [mistake] = mistakes(batch_size=1)
    assert "at least 2" in mistake
    assert "norm=instance" in mistake


def test_an_epoch_below_one_batch_is_refused():
    [mistake] = mistakes(batch_size=64, images_per_epoch=63)
    assert mistake.startswith("images_per_epoch=63: ")
    assert "64" in mistake


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr_g", 1.0), ("beta1", 0.0), ("dropout", 0.0), ("batch_size", 2), ("patch", 14), ("images_per_epoch", 64)],
)
def test_values_at_the_edge_of_a_rule_are_right(name, value):
    assert getattr(TrainConfig(**{name: value}), name) == value


ANYTHING = st.none() | st.booleans() | st.integers(-10, 300) | st.floats() | st.text(max_size=8)


@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING))
def test_any_values_give_a_trainable_config_or_a_config_error(values):
    try:
        config = TrainConfig(**values)
    except ConfigError as error:
        named = {line.partition("=")[0] for line in str(error).splitlines()}
        assert named <= {*values, "images_per_epoch"}
    else:
        assert 0 < config.lr_g <= 1
        assert 0 < config.lr_d <= 1
        assert all(math.isfinite(weight) and weight > 0 for weight in config.weights.values())
        assert isinstance(config.batch_size, int)
        assert (2 if config.norm == "batch" else 1) <= config.batch_size <= (config.images_per_epoch or math.inf)


CONFIGS = st.builds(
    TrainConfig,
    loss=st.sampled_from(["l1", "ssim", "both", "mse"]),
    adversarial=st.sampled_from(["sigmoid", "hinge", "none"]),
    full_resolution_skip=st.booleans(),
    depth=st.none() | st.integers(2, 8),
    l1_weight=st.floats(1e-3, 1e6),
    ssim_weight=st.floats(1e-3, 1e6),
    lr_g=st.floats(1e-9, 1),
    beta1=st.floats(0, 1, exclude_max=True),
    images_per_epoch=st.none() | st.integers(64, 10**6),
    width=st.integers(1, 512),
    seed=st.integers(0, 2**40),
)


@given(CONFIGS)
def test_a_config_comes_back_from_json_as_it_was(config):
    again = TrainConfig.from_dict(json.loads(json.dumps(config.as_dict(), allow_nan=False)))
    assert again.as_dict() == config.as_dict()
    assert again.weights == config.weights
    assert again.adversarial == config.adversarial
    assert (again.full_resolution_skip, again.depth) == (config.full_resolution_skip, config.depth)


@pytest.mark.parametrize(
    ("loss", "unused", "used"),
    [
        ("l1", {"ssim", "mse"}, {"l1": 3.0}),
        ("ssim", {"l1", "mse"}, {"ssim": 4.0}),
        ("both", {"mse"}, {"l1": 3.0, "ssim": 4.0}),
        ("mse", {"l1", "ssim"}, {"mse": 5.0}),
    ],
)
def test_a_weight_whose_loss_takes_no_part_is_none(loss, unused, used):
    config = TrainConfig(loss=loss, l1_weight=3.0, ssim_weight=4.0, mse_weight=5.0)
    assert config.weights == used
    assert {name for name in ("l1", "ssim", "mse") if config.as_dict()[f"{name}_weight"] is None} == unused


def test_what_only_trains_a_discriminator_is_none_without_one():
    alone, judged = (TrainConfig(adversarial=kind).as_dict() for kind in ("none", "sigmoid"))
    assert alone == {**judged, "adversarial": "none", "adversarial_weight": None, "lr_d": None}


def test_unknown_names_get_the_nearest_right_ones_all_at_once():
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict({"widht": 32, "dropuot": 0.5, "epochs": 3})
    assert str(caught.value).splitlines() == [
        "widht: no such setting. Did you mean width?",
        "dropuot: no such setting. Did you mean dropout?",
    ]


def test_a_name_like_none_other_gets_all_names():
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict({"zzzzzz": 1})
    assert all(name in str(caught.value) for name in FIELDS)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("width=32", "width", 32),
        ("images_per_epoch=8000", "images_per_epoch", 8000),
        ("lr_g=1", "lr_g", 1.0),
        ("lr_d=2e-4", "lr_d", 2e-4),
        ("loss=ssim", "loss", "ssim"),
        ("full_resolution_skip=true", "full_resolution_skip", True),
        ("full_resolution_skip=false", "full_resolution_skip", False),
        ("depth=3", "depth", 3),
        ("depth=none", "depth", None),
        ("adversarial=none", "adversarial", "none"),
    ],
)
def test_a_setting_on_the_command_line_has_its_fields_type(text, name, value):
    parsed = parse_setting(text)
    assert parsed == (name, value)
    assert type(parsed[1]) is type(value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("width", "NAME=VALUE"),
        ("widht=32", "Did you mean width?"),
        ("width=3.5", "width=3.5: width is a whole number, such as width=64"),
        ("images_per_epoch=all", "images_per_epoch is a whole number"),
        ("depth=deep", "depth is a whole number or none, such as depth=3"),
        ("full_resolution_skip=yes", "full_resolution_skip=yes: full_resolution_skip is true or false"),
        ("width=none", "width=none: width is a whole number, such as width=64"),
        ("lr_g=fast", "lr_g=fast: lr_g is a number, such as lr_g=0.0002"),
    ],
)
def test_a_bad_setting_on_the_command_line_says_what_would_be_right(text, hint):
    with pytest.raises(ConfigError) as caught:
        parse_setting(text)
    assert hint in str(caught.value)
