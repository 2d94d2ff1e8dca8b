"""The names in a folder of images: every spelling of splits and pairs, and the errors for names that are similar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.folder_layout import Layout, describe_skipped, list_some, parse_layout


def errors_of(*paths: str) -> list[str]:
    errors: list[str] = []
    parse_layout(paths, errors)
    return errors


def parsed(*paths: str) -> Layout:
    errors: list[str] = []
    layout = parse_layout(paths, errors)
    assert not errors
    return layout


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "validation", "test"),
        ("Train", "Validation", "Test"),
        ("TRAIN", "VAL", "TEST"),
        ("training", "valid", "testing"),
    ],
)
def test_usual_spellings_of_splits_are_understood_in_any_case(train, validation, test):
    layout = parsed(f"{train}/a.png", f"{validation}/b.png", f"{test}/c.png")
    assert layout.groups.keys() == {("train", "a.png"), ("validation", "b.png"), ("test", "c.png")}
    assert layout.splits == {"train": train, "validation": validation, "test": test}
    assert not layout.pooled


@pytest.mark.parametrize("other", ["val", "Validation", "test", "Testing"])
def test_one_split_beside_training_is_enough(other):
    layout = parsed("train/a.png", f"{other}/b.png")
    assert {split for split, _ in layout.groups} == {"train", "validation" if other[0] in "vV" else "test"}


def test_a_folder_that_is_called_train_and_has_all_images_is_not_divided():
    assert parsed("train/a.png", "train/b.png").groups.keys() == {("", "a.png"), ("", "b.png")}


def test_folders_of_other_names_are_one_pool_and_are_named():
    layout = parsed("2024/a.png", "2025/trip/b.png", "c.png")
    assert layout.groups.keys() == {("", "2024/a.png"), ("", "2025/trip/b.png"), ("", "c.png")}
    assert layout.pooled == ("2024/", "2025/")


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["test/a.png", "pictures/b.png"], "test/ without train/: put the other images into train/"),
        (["val/a.png", "test/b.png"], "test/ and val/ without train/"),
        (
            ["train/a.png", "test/b.png", "more/c.png"],
            "more/c.png: beside test/ and train/; put each image into",
        ),
        (["train/a.png", "c.png"], "c.png: beside train/; put each image into one of train, validation, test"),
        (["train/a.png", "Train/b.png", "test/c.png"], "Train/ and train/: both name the train images; keep one"),
        (["val/a.png", "valid/b.png", "train/c.png"], "val/ and valid/: both name the validation images; keep one"),
        (["train_images/a.png", "val_images/b.png"], "val_images/: its name suggests validation images; rename it to "),
        (["trainH/a.png", "testsets/b.png"], "testsets/: its name suggests test images; rename it to test/, or to a "),
        (["DIV2K_train_HR/a.png", "DIV2K_valid_HR/b.png"], "DIV2K_train_HR/: its name suggests train images"),
        (["train/a.png", "test/b.png", "train_cleaned/a.png"], "train_cleaned/: its name suggests train images"),
    ],
)
def test_what_would_be_divided_or_pooled_against_its_names_is_refused(paths, words):
    assert words in "\n".join(errors_of(*paths))


def test_a_word_in_a_name_counts_and_letters_in_a_word_do_not():
    for name in ("brain", "rain", "latest", "contest", "evaluations 2024"):
        assert set(parsed(f"{name}/a.png", "other/b.png").pooled) == {f"{name}/", "other/"}
    for name in ("training camp", "Train2", "trainH", "my_test"):
        assert "its name suggests" in "".join(errors_of(f"{name}/a.png", "other/b.png"))


@pytest.mark.parametrize(
    "form",
    [
        "{kind}/{name}.png",
        "train/{kind}/{name}.png",
        "Train/{kind}/{name}.png",
        "{kind}/train/{name}.png",
    ],
)
@pytest.mark.parametrize("kinds", [("noisy", "clean"), ("Noisy", "Clean"), ("NOISY", "clean")])
def test_pairs_are_found_in_any_case_and_inside_or_around_the_splits(form, kinds):
    paths = [form.format(kind=kind, name=name) for kind in kinds for name in "abc"]
    if "rain" in form:
        paths += [path.replace("Train", "Test").replace("train", "test").replace("a.", "x.") for path in paths]
    layout = parsed(*paths)
    for files in layout.groups.values():
        noisy, clean = files["noisy"], files["clean"]
        assert (kinds[0] in noisy, kinds[1] in clean) == (True, True)
        assert noisy.replace(kinds[0], kinds[1]) == clean
    assert {split for split, _ in layout.groups} == ({"train", "test"} if "rain" in form else {""})


def test_partners_may_end_differently_where_it_is_clear_which_they_are():
    layout = parsed("clean/a.png", "noisy/a.jpg", "clean/b.png", "noisy/b.png")
    assert layout.groups["", "a.png"] == {"clean": "clean/a.png", "noisy": "noisy/a.jpg"}
    errors = errors_of("clean/a.png", "noisy/a.jpg", "noisy/a.webp", "clean/b.png", "noisy/c.png")
    assert errors == [f"{path}: has no partner in {other}/" for path, other in (
        ("clean/a.png", "noisy"), ("noisy/a.jpg", "clean"), ("noisy/a.webp", "clean"), ("clean/b.png", "noisy"),
        ("noisy/c.png", "clean"),
    )]  # fmt: skip


@pytest.mark.parametrize(
    ("noisy", "clean"),
    [("noise", "clear"), ("lq", "hq"), ("LQ", "GT"), ("input", "target"), ("Noise", "Ground Truth"), ("low", "high"),
     ("noisy_images", "clean_images"), ("NOISY_SRGB", "GT_SRGB")],
)  # fmt: skip
def test_names_that_nearly_are_those_of_pairs_are_refused_with_the_right_ones(noisy, clean):
    for inside in ("", "train/"):
        others = ["test/z.png"] if inside else []
        errors = "\n".join(errors_of(f"{inside}{noisy}/a.png", f"{inside}{clean}/a.png", *others))
        hint = "looks like one half of noisy and clean pairs; rename it to"
        assert f"{inside}{noisy}/: {hint} noisy/, beside clean/" in errors
        assert f"{inside}{clean}/: {hint} clean/, beside noisy/" in errors


def test_one_near_name_is_enough_where_the_files_beside_it_have_the_same_names():
    (error,) = errors_of("noise/a.png", "photographs/a.png")
    assert "noise/: looks like one half" in error
    (error,) = errors_of("gt/a.png", "a.png")
    assert "gt/: looks like one half" in error
    assert parsed("high/a.png", "wide/b.png").pooled == ("high/", "wide/")
    assert "gt/: looks like one half" in "\n".join(errors_of("noisy/a.png", "gt/a.png"))
    assert parsed("clean/low/a.png", "noisy/low/a.png", "clean/high/a.png", "noisy/high/a.png").groups


@pytest.mark.parametrize("double", ["Noisy/a.png", "NOISY/a.png"])
def test_two_files_for_one_place_are_told(double):
    assert "noisy/a.png: name the same image; rename one" in "\n".join(errors_of("clean/a.png", "noisy/a.png", double))


def test_what_is_skipped_is_told_by_reason_and_counted():
    paths = [*(f"{n}.bmp" for n in range(12)), "._a.png", ".git/", "Thumbs.db", "sub/linked/", "README"]
    assert describe_skipped(paths) == [
        "skipped, for their names: .bmp: 12 (0.bmp, 1.bmp, 2.bmp, 3.bmp, 4.bmp and 7 more); "
        "hidden: 3 (._a.png, .git/, Thumbs.db); links to folders: 1 (sub/linked/); without an ending: 1 (README)"
    ]
    assert describe_skipped([]) == []
    assert list_some(["a", "b"]) == "a, b"


FOLDERS = st.sampled_from(
    [
        "train",
        "Test",
        "val",
        "noisy",
        "Clean",
        "gt",
        "lq",
        "test_images",
        "GT_SRGB",
        "photos",
        "x" * 300,
        "Übung",
        "日本",
    ]
)


@given(
    st.sets(st.tuples(st.lists(FOLDERS, max_size=3), st.sampled_from(["a.png", "b.jpg", "a.tif"])).map(
        lambda parts: "/".join([*parts[0], parts[1]])
    ), min_size=1, max_size=8)
)  # fmt: skip
def test_every_image_of_any_tree_is_in_one_place_or_told(paths):
    errors: list[str] = []
    layout = parse_layout(paths, errors)
    placed = [path for files in layout.groups.values() for path in files.values()]
    assert len(placed) == len(set(placed))
    assert errors or set(placed) == paths
    assert parse_layout(sorted(paths, reverse=True), []) == layout
