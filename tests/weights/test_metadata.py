"""Metadata of Ultralytics exports, in the formats of all releases."""

import json

import pytest

from app.weights import metadata

NAMES = {0: "car", 1: 'it\'s a "truck"', 2: "köttbulle\nzwei"}


@pytest.mark.parametrize(
    "given",
    [
        NAMES,
        list(NAMES.values()),
        tuple(NAMES.values()),
        {str(i): name for i, name in NAMES.items()},
        str(NAMES),
        str(list(NAMES.values())),
        json.dumps(NAMES),
        json.dumps(list(NAMES.values())),
        {name: name for name in NAMES.values()},
    ],
    ids=["dict", "list", "tuple", "keys as text", "repr", "repr of a list", "JSON", "JSON list", "no ids"],
)
def test_names_are_read_in_every_format(given):
    assert metadata.names(given, 3) == NAMES
    assert metadata.names(given, None) == NAMES
    assert metadata.names_problem(given, 3) == ""


def test_names_that_are_not_strings_become_strings():
    assert metadata.names({0: 7, 1: True, 2: None}, 3) == {0: "7", 1: "True", 2: "None"}


@pytest.mark.parametrize("given", [None, "", "car, truck", "[1, 2", 7, "[" * 10_000], ids=lambda given: str(given)[:9])
def test_missing_names_default_to_class_and_id_like_in_ultralytics(given):
    assert metadata.names(given, 2) == {0: "class0", 1: "class1"}
    assert metadata.names_problem(given, 2) == "it names 0 of its 2 classes; the others are called class0, class1"


def test_too_few_and_too_many_names_are_reported():
    assert metadata.names({0: "a", 3: "b"}, 4) == {0: "a", 1: "class1", 2: "class2", 3: "b"}
    assert metadata.names_problem({0: "a", 3: "b"}, 7).endswith("class1, class2, class4 and so on")
    assert metadata.names(["a", "b", "c"], 2) == {0: "a", 1: "b"}
    assert metadata.names_problem(["a", "b", "c"], 2) == "it names 3 classes and has 2: the last names are ignored"


@pytest.mark.parametrize("given", [32, "32", "[32]", [8, 16, 32], "32.0", "tensor([ 8., 16., 32.])", (32,)], ids=str)
def test_stride_is_the_largest_number(given):
    assert metadata.largest(given, 1) == 32


@pytest.mark.parametrize("given", [None, "", "[]", "None"], ids=str)
def test_a_missing_value_has_the_default(given):
    assert metadata.largest(given, 640) == 640
    assert metadata.shape(given) is None


def test_a_size_is_one_side_or_height_and_width():
    assert metadata.shape(640) == metadata.shape("[640, 640]") == (640, 640)
    assert metadata.shape([384, 640]) == (384, 640)
    assert metadata.trained_size(600, 32) == metadata.trained_size([320, 600], 32) == 608


def test_flags_and_keypoint_shapes_are_read_from_text_and_values():
    assert metadata.flag("True")
    assert metadata.flag(True)
    assert not metadata.flag(None)
    assert metadata.kpt_shape("[17, 3]") == metadata.kpt_shape((17, 3)) == (17, 3)
    assert metadata.kpt_shape("17") is None
