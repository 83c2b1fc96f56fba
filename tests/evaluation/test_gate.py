"""The accuracy gate: the measurements and the limits."""

import dataclasses

import fakes
import numpy as np
import pytest

from app.evaluation import gate as gate_module
from app.evaluation.datasets import Sample
from app.evaluation.datasets.annotations import Labels
from app.evaluation.gate import MIN_ROWS, Gate, worst
from app.model import ModelInfo
from app.store.accuracy import AccuracyReport, Limits
from app.vision import matching, postprocess, preprocess
from app.vision.matching import CONF
from app.vision.postprocess import Thresholds

SEEN = 40  # boxes with a high score
SIDE = 640
TRANSFORM = preprocess.place(SIDE, SIDE, SIDE, 32, None)
LIMITS = Limits()


def some_rows(seed: int = 0, *, seen: int = SEEN, best: float = 0.95) -> np.ndarray:
    """Return rows as an engine does, highest score first: boxes on a grid, so that NMS keeps them all."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((100, 6), np.float32)
    corner = np.stack(np.meshgrid(np.arange(10), np.arange(10)), -1).reshape(-1, 2) * 60
    rows[:, :2] = corner + rng.uniform(2, 8, (100, 2))
    rows[:, 2:4] = rows[:, :2] + rng.uniform(30, 45, (100, 2))
    rows[:seen, 4] = np.linspace(best, min(best, 0.3), seen)
    rows[seen:, 4] = np.linspace(0.02, 0.001, 100 - seen)
    rows[:, 5] = rng.integers(0, 5, 100)
    return rows


def sample(rows: np.ndarray | None = None) -> Sample:
    """Return a black image; `rows` become its labels."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    return Sample(pixels, None if rows is None else Labels(rows[:, 5].astype(np.int64), rows[:, :4].copy()))


def evaluated(*pairs: tuple[np.ndarray, np.ndarray], precision: str = "fp32", labels: bool = False) -> AccuracyReport:
    gate = Gate(precision, fakes.MODEL)
    for reference, engine in pairs:
        gate.add(sample(reference[:SEEN] if labels else None), TRANSFORM, (reference,), (engine,))
    return gate.figures()


def moved(amount: float, *, column: int = 0, row: int | slice = 0) -> np.ndarray:
    rows = some_rows()
    rows[row, column] += amount
    return rows


def test_an_engine_with_the_same_rows_is_perfect():
    figures = evaluated((some_rows(), some_rows()), labels=True)
    assert (figures.images, figures.boxes, figures.rows) == (1, SEEN, SEEN)
    assert (figures.agreement, figures.false_positives, figures.rows_agreement) == (1, 0, 1)
    assert (figures.box_px, figures.shift_px, figures.score) == (0, 0, 0)
    assert figures.map50_95 == figures.reference_map50_95 == pytest.approx(0.995)
    assert all(figures.shortcomings(precision, LIMITS) == [] for precision in ("fp32", "fp16", "int8"))


def test_the_order_of_rows_does_not_matter():
    assert evaluated((some_rows(), some_rows()[::-1].copy())).rows_agreement == 1


def test_pairs_are_compared_with_each_other_after_an_additional_box():
    """The additional box has the highest score, so every other box of the engine has another index than its partner."""
    additional = np.array([[602, 602, 637, 637, 0.99, 0]], np.float32)
    figures = evaluated((some_rows(), np.concatenate([additional, some_rows()])))
    assert (figures.agreement, figures.box_px, figures.shift_px, figures.score) == (1, 0, 0, 0)
    assert figures.false_positives == pytest.approx(1 / (SEEN + 1), abs=1e-5)


def test_a_row_of_another_class_is_not_a_row_of_the_reference():
    engine = some_rows()
    engine[0, 5] = (engine[0, 5] + 1) % 5
    assert evaluated((some_rows(), engine)).rows_agreement == pytest.approx(1 - 1 / SEEN)


def test_images_without_boxes_give_neutral_figures():
    figures = evaluated((some_rows(seen=0), some_rows(seen=0)))
    assert (figures.boxes, figures.agreement, figures.false_positives) == (0, 1, 0)
    assert (figures.box_px, figures.shift_px, figures.score, figures.score_mean) == (0, 0, 0, 0)


def test_a_missing_box_lowers_the_agreement():
    without = some_rows()
    without[:4, 4] = 0
    figures = evaluated((some_rows(), without))
    assert figures.agreement == pytest.approx(1 - 4 / SEEN)
    assert figures.false_positives == 0
    assert "it finds 0.9000 of the reference's boxes, 0.99 are required" in figures.shortcomings("fp32", LIMITS)


def test_a_box_that_the_reference_does_not_have_is_a_false_positive():
    figures = evaluated((some_rows(seen=36), some_rows()))
    assert figures.agreement == 1
    assert figures.false_positives == pytest.approx(4 / SEEN)
    assert any("are not the reference's" in text for text in figures.shortcomings("fp16", LIMITS))


def test_a_box_of_another_class_does_not_match():
    figures = evaluated((some_rows(), moved(1, column=5, row=slice(0, 4))))
    assert figures.agreement == pytest.approx(1 - 4 / SEEN)


def test_a_box_whose_score_fell_below_the_threshold_still_matches():
    sunk = some_rows()
    sunk[:, 4] *= 0.5
    figures = evaluated((some_rows(), sunk), precision="int8")
    assert figures.agreement == 1
    assert figures.score == pytest.approx(0.95 / 2, abs=0.01)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("column", "amount"), [(0, 0.6), (3, -0.6), (4, 0.011)])
def test_rows_beyond_the_tolerance_are_refused_even_if_the_boxes_agree(precision, column, amount):
    figures = evaluated((some_rows(), moved(amount, column=column, row=slice(0, SEEN))), precision=precision)
    assert figures.agreement == 1
    assert figures.rows_agreement == 0
    assert any("of the rows are within 0.5 px" in text for text in figures.shortcomings(precision, LIMITS))


def test_fp16_may_differ_more_in_score_than_fp32():
    rows = moved(0.008, column=4, row=slice(0, SEEN))
    assert evaluated((some_rows(), rows), precision="fp32").rows_agreement == 0
    assert evaluated((some_rows(), rows), precision="fp16").rows_agreement == 1


def test_a_shift_of_all_boxes_to_one_side_is_refused():
    figures = evaluated((some_rows(), moved(1, column=slice(0, 4, 2), row=slice(None))), precision="int8")
    assert figures.agreement > 0.9
    assert figures.shift_px == pytest.approx(1, abs=1e-4)
    assert figures.shortcomings("int8", LIMITS) == ["its boxes are off by 1.00 px to one side"]


def test_noise_is_no_shift():
    noisy = some_rows()
    noisy[:, :4] += np.random.default_rng(1).normal(0, 0.5, (100, 4)).astype(np.float32)
    figures = evaluated((some_rows(), noisy), precision="int8")
    assert figures.box_px > 1
    assert figures.shortcomings("int8", LIMITS) == []


@pytest.mark.parametrize("column", range(6))
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_rows_with_nan_or_infinity_are_not_boxes(column, wrong):
    figures = evaluated((some_rows(), moved(wrong, column=column, row=slice(0, 4))))
    assert figures.agreement == pytest.approx(1 - 4 / SEEN)
    assert figures.shortcomings("fp32", LIMITS)


def test_an_engine_that_gives_only_nan_fails_in_every_precision():
    figures = evaluated((some_rows(), np.full_like(some_rows(), np.nan)))
    assert (figures.agreement, figures.rows_agreement) == (0, 0)
    assert all(figures.shortcomings(precision, LIMITS) for precision in ("fp32", "fp16", "int8"))


def test_without_boxes_the_rows_with_the_highest_scores_are_compared():
    unsure = some_rows(best=0.2)
    assert unsure[:, 4].max() < CONF
    figures = evaluated((unsure, unsure))
    assert (figures.boxes, figures.rows) == (0, MIN_ROWS)
    assert figures.shortcomings("fp32", LIMITS) == []
    wrong = unsure.copy()
    wrong[:, :4] += 3
    assert evaluated((unsure, wrong)).shortcomings("fp32", LIMITS)


def test_int8_is_refused_if_the_reference_finds_nothing():
    unsure = some_rows(best=0.2)
    assert evaluated((unsure, unsure), precision="int8").shortcomings("int8", LIMITS) == [
        "the reference finds nothing in the images: set GATE_DIR to other images"
    ]


def test_the_class_of_rows_with_very_low_scores_is_ignored_but_the_box_is_compared():
    unlikely = np.array([[0, 0, 9, 9, 1e-6, 3], [20, 0, 29, 9, 1e-6, 4]], np.float32)
    assert evaluated((unlikely, unlikely + np.float32([0, 0, 0, 0, 0, 1]))).rows_agreement == 1
    assert evaluated((unlikely, unlikely + np.float32([1, 1, 1, 1, 0, 0]))).rows_agreement == 0


def test_an_engine_is_refused_without_images():
    assert "there are no images to evaluate it on" in evaluated().shortcomings("fp32", LIMITS)


def test_images_without_rows_do_not_change_the_result():
    none = np.zeros((0, 6), np.float32)
    figures = evaluated((some_rows(), some_rows()), (none, none))
    assert (figures.images, figures.agreement) == (2, 1)
    assert figures.shortcomings("fp32", LIMITS) == []


def test_int8_with_labels_is_refused_for_its_loss_of_map():
    worse = some_rows()
    worse[: SEEN // 4, 4] = 0
    figures = evaluated((some_rows(), worse), precision="int8", labels=True)
    lost = figures.reference_map50_95 - figures.map50_95
    assert lost > 0.1
    assert figures.shortcomings("int8", LIMITS) == [f"it loses {lost:.4f} mAP50-95, 0.01 are allowed"]
    assert figures.shortcomings("int8", dataclasses.replace(LIMITS, map_loss=1.0)) == []


def test_boxes_are_matched_one_to_one():
    twice = np.repeat(some_rows()[:1], 2, axis=0)
    twice[1, 5] += 1  # NMS keeps it: another class
    both, ours, theirs = matching.difference(
        postprocess.select((some_rows()[:1],), Thresholds(), fakes.MODEL),
        postprocess.select((twice,), Thresholds(), fakes.MODEL),
    )
    assert (both, ours, theirs) == (1, 0, 1)


def test_the_result_depends_on_the_limits():
    figures = dataclasses.replace(fakes.FIGURES, agreement=0.985, rows_agreement=0.985)
    assert figures.shortcomings("fp16", LIMITS) == []
    assert figures.shortcomings("fp32", LIMITS)
    assert figures.shortcomings("fp32", Limits(fp32=0.98)) == []


def test_the_accuracy_report_has_plain_numbers():
    figures = evaluated((some_rows(), moved(0.25)), labels=True).to_json()
    assert all(value is None or type(value) in (int, float) for value in figures.values())
    assert figures["box_px"] == pytest.approx(0.25, abs=1e-4)


# Few boxes: the confidence interval is compared with the limit


def figures_of(boxes: int, found: int, **others: object) -> AccuracyReport:
    few = dataclasses.replace(fakes.FIGURES, map50=None, map50_95=None, reference_map50=None, reference_map50_95=None)
    share = found / boxes
    return dataclasses.replace(
        few, images=10, boxes=boxes, agreement=share, false_positives=1 - share, engine_boxes=boxes, **others
    )


@pytest.mark.parametrize(
    ("found", "of", "low", "high"), [(4, 5, 0.376, 0.964), (5, 5, 0.566, 1), (50, 56, 0.785, 0.950)]
)
def test_the_interval_is_the_wilson_interval(found, of, low, high):
    assert figures_of(of, found).interval() == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize(
    ("boxes", "found", "passes", "doubted"),
    [
        (5, 4, False, False),  # the interval is too wide
        (5, 5, True, True),
        (10, 9, True, True),
        (56, 50, True, True),  # 0.893, and the interval reaches 0.9
        (56, 40, False, False),
        (99, 99, True, False),
        (100, 89, False, False),  # from 100 boxes on the share itself is compared
        (100, 90, True, False),
    ],
)
def test_int8_passes_if_its_interval_reaches_the_limit_and_is_narrow_enough(boxes, found, passes, doubted):
    figures = figures_of(boxes, found)
    assert (figures.shortcomings("int8", LIMITS) == []) == passes
    if passes:
        assert bool(figures.doubts("int8", LIMITS)) == doubted


def test_the_message_gives_the_number_of_images_needed():
    assert "About 200 images like these are needed" in figures_of(5, 5).doubts("int8", LIMITS)[0]
    assert figures_of(5, 5).doubts("fp32", LIMITS) == []  # the comparison of rows before NMS is enough
    assert "About 200 images like these are needed" in figures_of(5, 4).shortcomings("int8", LIMITS)[0]


@pytest.mark.parametrize("boxes", [10, 20, 50, 99])
def test_with_few_boxes_correct_engines_pass_and_broken_ones_do_not(boxes):
    """At most 1 in 100 engines that find 0.97 of the boxes is refused, and 1 in 100 that find 0.5 passes."""
    rng = np.random.default_rng(boxes)

    def refused(rate: float) -> float:
        found = rng.binomial(boxes, rate, 2000)
        return float(np.mean([bool(figures_of(boxes, int(each)).shortcomings("int8", LIMITS)) for each in found]))

    assert refused(0.97) <= 0.04 if boxes == 10 else refused(0.97) <= 0.01
    assert refused(0.5) >= (0.98 if boxes == 10 else 0.99)


def test_a_shift_is_proven_only_by_enough_pairs_with_little_noise():
    """Few boxes, or boxes with much noise, do not prove a shift."""
    rows = some_rows(seen=2)
    shifted = rows + np.float32([1, 0, 1, 0, 0, 0])
    few = evaluated((rows, shifted), precision="int8")
    assert few.shift_px == pytest.approx(1, abs=1e-4)
    assert few.proven_shift_px == 0
    noisy = some_rows()
    noisy[:, :4] += np.random.default_rng(2).normal(0.55, 2, (100, 4)).astype(np.float32)
    assert evaluated((some_rows(), noisy), precision="int8").proven_shift_px < 0.5


def test_the_proven_shift_is_the_difference_at_the_rank_of_the_interval():
    """Ranks 39 and 60 (from 0) of 100 sorted differences enclose the median with 95 % confidence."""
    sides = np.arange(100, dtype=np.float32)[:, None]
    assert gate_module._proven_shift(sides) == 39
    assert gate_module._proven_shift(-sides) == 39
    assert gate_module._proven_shift(sides - 50) == 0
    assert gate_module._proven_shift(np.ones((8, 1), np.float32)) == 1


@pytest.mark.parametrize("pairs", [8, 12, 20, 40])
def test_the_interval_of_the_median_contains_it_in_95_of_100_trials(pairs):
    rng = np.random.default_rng(pairs)
    beyond = [gate_module._proven_shift(rng.normal(0, 1, (pairs, 1)).astype(np.float32)) > 0 for _ in range(2000)]
    assert np.mean(beyond) <= 0.06


# Other tasks: masks, keypoints, rotation and classes must agree too


def of_task(task: str, **facts: object) -> ModelInfo:
    return dataclasses.replace(fakes.MODEL, task=task, **facts)


def gate_of(model: ModelInfo, reference: tuple, engine: tuple) -> AccuracyReport:
    gate = Gate("fp32", model)
    gate.add(sample(), TRANSFORM, reference, engine)
    return gate.figures()


def with_masks(change: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and prototypes; each mask is the left half of its box, its edge moved by `change` px."""
    rows = some_rows()
    middle = rows[:, [0, 2]].mean(1, keepdims=True)
    ramp = np.stack([np.ones((160, 160)), np.broadcast_to(np.arange(160) * 4 + 1.5, (160, 160))]).astype(np.float32)
    coefficients = np.concatenate([middle + change, -np.ones_like(middle)], 1)
    return np.concatenate([rows, coefficients], 1).astype(np.float32), ramp


def test_equal_masks_agree():
    figures = gate_of(of_task("segment"), with_masks(), with_masks())
    assert (figures.agreement, figures.mask_iou, figures.keypoint_px) == (1, 1, None)
    assert figures.shortcomings("fp32", LIMITS) == []


def test_different_masks_do_not_agree_even_if_their_boxes_do():
    figures = gate_of(of_task("segment"), with_masks(), with_masks(5))
    assert figures.rows_agreement == 1
    assert figures.agreement < 0.1
    assert figures.shortcomings("int8", LIMITS)


def with_keypoints(change: float = 0, visible: float = 0.9) -> tuple[np.ndarray]:
    rows = some_rows()
    points = np.concatenate(
        [rows[:, :2] + 5, np.full((100, 1), 0.9), rows[:, :2] + 15 + change, np.full((100, 1), visible)], 1
    )
    return (np.concatenate([rows, points], 1).astype(np.float32),)


@pytest.mark.parametrize(("change", "visible", "agreement"), [(0, 0.9, 1), (1, 0.9, 1), (10, 0.9, 0), (10, 0.2, 1)])
def test_visible_keypoints_must_agree_with_the_reference(change, visible, agreement):
    figures = gate_of(of_task("pose", kpt_shape=(2, 3)), with_keypoints(0, visible), with_keypoints(change, visible))
    assert figures.agreement == agreement
    assert figures.keypoint_px == pytest.approx(change if agreement and visible > 0.5 else 0, abs=1e-3) or not agreement


def rotated(angle: float = 0) -> tuple[np.ndarray]:
    rows = some_rows()
    rows[:, 2:4] -= rows[:, :2]
    rows[:, 3] /= 2
    return (np.concatenate([rows, np.full((100, 1), 0.3 + angle)], 1).astype(np.float32),)


@pytest.mark.parametrize(("angle", "agreement"), [(0, 1), (0.02, 1), (0.5, 0)])
def test_rotated_boxes_must_have_the_same_angle(angle, agreement):
    figures = gate_of(of_task("obb"), rotated(), rotated(angle))
    assert (figures.agreement, figures.boxes > 30) == (agreement, True)


def test_classification_agrees_if_the_most_probable_class_is_the_same():
    model, probs = of_task("classify"), np.array([0.2, 0.5, 0.3], np.float32)
    same = gate_of(model, (probs,), (probs + np.float32([0.001, -0.001, 0]),))
    assert (same.boxes, same.agreement, same.false_positives, same.rows_agreement) == (1, 1, 0, 1)
    assert same.shortcomings("fp32", LIMITS) == []
    other = gate_of(model, (probs,), (probs[::-1] + np.float32([0.3, 0, 0]),))
    assert (other.agreement, other.false_positives, other.rows_agreement) == (0, 1, 0)
    assert other.shortcomings("int8", LIMITS)


def test_several_shapes_report_the_worst_mask_iou_and_keypoint_distance():
    some = [dataclasses.replace(fakes.FIGURES, mask_iou=iou, keypoint_px=px) for iou, px in ((0.9, 1.0), (0.8, 0.5))]
    assert (worst(some).mask_iou, worst(some).keypoint_px) == (0.8, 1.0)
    assert worst([fakes.FIGURES] * 2).mask_iou is None
