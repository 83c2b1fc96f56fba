"""The accuracy gate: what passes, what does not, and what it says."""

import numpy as np
import pytest

from app.errors import ParityFailed
from app.parity import CONF, TOP, Parity, compare

SEEN = 40  # rows above CONF, more than TOP


def some_rows(seed: int = 0, best: float = 0.95) -> np.ndarray:
    """[100, 6], best first; boxes far apart."""
    corner = np.random.default_rng(seed).permutation(100)[:, None] * [20.0, 5.0]
    scores = np.concatenate([np.linspace(best, best * 0.3, SEEN), np.linspace(best * 0.2, 0.001, 60)])
    classes = np.arange(100) % 3
    return np.column_stack([corner, corner + 12, scores, classes]).astype(np.float32)


def moved(change: float, row: int = 5, column: int = 0) -> np.ndarray:
    rows = some_rows()
    rows[row, column] += change
    return rows


def test_rows_pass_against_themselves():
    parity = compare([(some_rows(seed), some_rows(seed)) for seed in range(3)])
    assert parity == Parity(images=3, rows=3 * SEEN, matched=3 * SEEN, box_px=0, score=0)
    parity.require()


def test_the_order_of_rows_is_free():
    compare([(some_rows(), np.random.default_rng(1).permutation(some_rows()))]).require()


@pytest.mark.parametrize("column", range(4))
def test_a_corner_off_by_less_than_half_a_pixel_passes_and_by_more_fails(column):
    near, far = (
        compare([(some_rows(), moved(0.4, column=column))]),
        compare([(some_rows(), moved(-0.6, column=column))]),
    )
    assert near.box_px == pytest.approx(0.4, abs=1e-4)
    near.require()
    assert (far.matched, far.rows, far.box_px) == (SEEN - 1, SEEN, pytest.approx(0.6, abs=1e-4))
    with pytest.raises(ParityFailed, match=r"1 of 40 rows on 1 images differ, by up to 0\.60 px and 0\.0000 in score"):
        far.require()


def test_a_score_off_by_less_than_0_005_passes_and_by_more_fails():
    compare([(some_rows(), moved(0.004, column=4))]).require()
    with pytest.raises(ParityFailed, match=r"1 of 40 .* 0\.00 px and 0\.0060 in score"):
        compare([(some_rows(), moved(-0.006, column=4))]).require()


def test_another_class_fails():
    parity = compare([(some_rows(), moved(1, column=5))])
    assert (parity.matched, parity.rows) == (SEEN - 1, SEEN)
    with pytest.raises(ParityFailed):
        parity.require()


def test_a_class_that_the_engine_never_gives_fails():
    engine = some_rows()
    engine[:, 5] = 0
    parity = compare([(some_rows(), engine)])
    assert (parity.matched, parity.box_px) == (14, np.inf)
    with pytest.raises(ParityFailed, match="26 of 40"):
        parity.require()


@pytest.mark.parametrize("column", range(6))
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_value_that_is_no_number_fails(column, wrong):
    with pytest.raises(ParityFailed, match="1 of 40"):
        compare([(some_rows(), moved(wrong, column=column))]).require()


def test_an_engine_that_gives_only_nan_fails():
    with pytest.raises(ParityFailed, match="40 of 40"):
        compare([(some_rows(), np.full_like(some_rows(), np.nan))]).require()


def test_weights_that_see_nothing_are_compared_too():
    unsure = some_rows(best=0.2)
    assert unsure[:, 4].max() < CONF
    assert compare([(unsure, unsure)]).rows == TOP
    wrong = unsure.copy()
    wrong[TOP - 1, 0] += 1
    with pytest.raises(ParityFailed, match=f"1 of {TOP}"):
        compare([(unsure, wrong)]).require()


def test_a_row_below_those_compared_may_differ():
    compare([(some_rows(), moved(50, row=SEEN))]).require()
    with pytest.raises(ParityFailed):
        compare([(some_rows(), moved(50, row=SEEN - 1))]).require()


def test_one_bad_image_among_good_ones_fails():
    pairs = [(some_rows(seed), some_rows(seed)) for seed in range(5)]
    pairs[3] = (some_rows(3), some_rows(4)[::-1] + np.float32(3))
    parity = compare(pairs)
    assert parity.images == 5
    assert parity.rows - SEEN <= parity.matched < parity.rows
    with pytest.raises(ParityFailed, match="on 5 images"):
        parity.require()


def test_nothing_compared_is_no_proof():
    with pytest.raises(ParityFailed, match="no check images"):
        compare([]).require()


def test_an_image_without_rows_has_nothing_to_compare():
    none = np.zeros((0, 6), np.float32)
    assert compare([(none, some_rows())]).rows == 0


def test_the_figures_are_plain_numbers():
    assert compare([(some_rows(), moved(0.25))]).to_json() == {
        "images": 1,
        "rows": SEEN,
        "matched": SEEN,
        "box_px": pytest.approx(0.25, abs=1e-4),
        "score": 0.0,
    }


def test_of_rows_that_no_class_fits_the_class_is_noise_but_the_box_is_not():
    unlikely = np.array([[0, 0, 9, 9, 1e-6, 3], [20, 0, 29, 9, 1e-6, 4]], np.float32)
    other_class = unlikely + np.float32([0, 0, 0, 0, 0, 1])
    assert compare([(unlikely, other_class)]).matched == 2
    moved = unlikely + np.float32([1, 1, 1, 1, 0, 0])
    assert compare([(unlikely, moved)]).matched == 0
