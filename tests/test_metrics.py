"""Every number read off the confusion matrix, recounted pixel by pixel."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pat.metrics import (
    batch_miou,
    confusion_matrix,
    dice,
    fine_grained,
    frequency_groups,
    iou,
    nanmean,
    pixel_accuracy,
    summarise,
)


@st.composite
def predictions(draw):
    "Predicted and true classes of a batch, with the number of classes and the label that does not count."
    B, H, W, C = (draw(st.integers(1, n)) for n in (3, 4, 4, 6))
    ignore_index = draw(st.sampled_from([255, -1, 0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    prediction, target = rng.integers(C, size=(2, B, H, W))
    target[rng.random((B, H, W)) < draw(st.sampled_from([0, 0.3, 1]))] = ignore_index
    return prediction, target, C, ignore_index


def label_sets(prediction, target, c, ignore_index):
    "Positions that are labelled c, and positions that are predicted c, among the pixels that count."
    places = [place for place in np.ndindex(target.shape) if target[place] != ignore_index]
    return {p for p in places if target[p] == c}, {p for p in places if prediction[p] == c}


def matrix_of(case):
    prediction, target, C, ignore_index = case
    return confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(target), C, ignore_index)


@given(predictions())
def test_confusion_matrix_is_a_count_per_image(case):
    prediction, target, C, ignore_index = case
    expected = np.zeros((len(target), C, C), dtype=int)
    for i, h, w in np.ndindex(target.shape):
        if target[i, h, w] != ignore_index:
            expected[i, target[i, h, w], prediction[i, h, w]] += 1
    matrix = matrix_of(case)
    assert matrix.dtype == torch.int64
    np.testing.assert_array_equal(matrix.numpy(), expected)


@given(predictions())
def test_scores_are_those_of_sets_of_pixels(case):
    "IoU |A & B| / |A | B|, Dice 2 |A & B| / (|A| + |B|), NaN where both are empty."
    prediction, target, C, ignore_index = case
    matrix = matrix_of(case).sum(0).numpy()
    for c in range(C):
        true, guessed = label_sets(prediction, target, c, ignore_index)
        if true | guessed:
            assert iou(matrix)[c] == pytest.approx(len(true & guessed) / len(true | guessed))
            assert dice(matrix)[c] == pytest.approx(2 * len(true & guessed) / (len(true) + len(guessed)))
        else:
            assert math.isnan(iou(matrix)[c]) and math.isnan(dice(matrix)[c])
    counted = target != ignore_index
    right = (prediction == target)[counted].mean() if counted.any() else math.nan
    assert pixel_accuracy(matrix) == pytest.approx(right, nan_ok=True)


@given(predictions())
def test_batch_miou_is_over_the_labelled_classes_only(case):
    prediction, target, C, ignore_index = case
    scores = []
    for c in range(C):
        true, guessed = label_sets(prediction, target, c, ignore_index)
        if true:
            scores.append(len(true & guessed) / len(true | guessed))
    expected = sum(scores) / len(scores) if scores else math.nan
    assert batch_miou(matrix_of(case).sum(0).numpy()) == pytest.approx(expected, nan_ok=True)


def test_iou_of_a_stack_is_a_stack_of_ious():
    stack = np.random.default_rng(0).integers(5, size=(4, 3, 3))
    stack[2] = 0  # an image without a label
    for one, matrix in zip(iou(stack), stack, strict=True):
        np.testing.assert_array_equal(one, iou(matrix))
    assert np.isnan(iou(stack)[2]).all()


def test_predicted_but_never_labelled_is_zero_not_absent():
    "Class 1 has no pixel and one wrong guess; class 2 has neither."
    matrix = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(iou(matrix), [3 / 4, 0, np.nan])
    assert nanmean(iou(matrix)) == 3 / 8
    assert batch_miou(matrix) == 3 / 4


def test_nanmean_of_nothing_is_nan_without_a_warning():
    assert math.isnan(nanmean(np.array([np.nan, np.nan]))) and math.isnan(nanmean(np.array([])))
    assert nanmean([1.0, float("nan"), 3.0]) == 2
    assert isinstance(nanmean(np.ones(3)), float)  # what goes into JSON and checkpoints


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, -1]))
def test_nanmean_along_an_axis_is_that_of_each_row(seed, axis):
    rng = np.random.default_rng(seed)
    values = rng.random((4, 5, 3))
    values[rng.random(values.shape) < 0.5] = np.nan
    means = nanmean(values, axis=axis)
    rows = np.moveaxis(values, axis, -1)
    assert means.shape == rows.shape[:-1]
    for place in np.ndindex(means.shape):
        assert means[place] == pytest.approx(nanmean(rows[place]), nan_ok=True)


@pytest.mark.slow
def test_metrics_need_numpy_and_torch_alone():
    code = "import sys; import pat.metrics; print(*{name.partition('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"pandas", "scipy", "lightning_fabric", "segmentation_models_pytorch", "timm", "matplotlib", "yaml"}
    assert "numpy" in found and not heavy & set(found)


@given(st.lists(st.integers(0, 9), max_size=20))
def test_frequency_groups_part_the_classes_that_occur(pixels):
    groups = frequency_groups(pixels)
    members = [c for name in ("tail", "medium", "head") for c in groups[name]]
    assert sorted(members) == [c for c, n in enumerate(pixels) if n > 0]
    assert [pixels[c] for c in members] == sorted(n for n in pixels if n > 0)
    sizes = [len(groups[name]) for name in ("tail", "medium", "head")]
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(0, 9), max_size=20))
def test_the_most_frequent_class_is_head_and_the_rarest_tail(pixels):
    groups, occurring = frequency_groups(pixels), [n for n in pixels if n > 0]
    if occurring:
        assert pixels[groups["head"][-1]] == max(occurring)
    if len(occurring) > 1:
        assert pixels[groups["tail"][0]] == min(occurring)


@given(st.lists(st.integers(1, 9), min_size=3, max_size=20))
def test_where_all_classes_occur_the_groups_are_thirds_of_the_ordered_list(pixels):
    thirds = np.array_split(np.argsort(pixels, kind="stable"), 3)
    assert [*frequency_groups(pixels).values()] == [third.tolist() for third in thirds]


@given(st.lists(st.integers(1, 9), max_size=9), st.integers(0, 9))
def test_a_class_that_never_occurs_changes_no_group(pixels, place):
    named = lambda groups, classes: {name: [classes[c] for c in members] for name, members in groups.items()}
    names = [f"class {c}" for c in range(len(pixels))]
    more = [*names[:place], "never", *names[place:]]
    found = frequency_groups([*pixels[:place], 0, *pixels[place:]])
    assert named(found, more) == named(frequency_groups(pixels), names)


@pytest.mark.parametrize(
    ("pixels", "tail", "medium", "head"),
    [
        ([1_000_000, 2_000], [1], [], [0]),  # background and object
        ([2_000, 1_000_000], [0], [], [1]),
        ([7, 7], [0], [], [1]),
        ([0, 5, 0, 9], [1], [], [3]),
        ([5], [], [], [0]),
        ([0, 5], [], [], [1]),
        ([0, 0], [], [], []),
        ([], [], [], []),
    ],
)
def test_one_class_or_two(pixels, tail, medium, head):
    assert frequency_groups(pixels) == {"tail": tail, "medium": medium, "head": head}
    assert frequency_groups(torch.tensor(pixels)) == {"tail": tail, "medium": medium, "head": head}


def test_ties_in_frequency_keep_the_order_of_the_classes():
    assert frequency_groups([5, 5, 5, 5, 5, 1]) == {"tail": [5, 0], "medium": [1, 2], "head": [3, 4]}


def test_summarise_by_hand():
    """a and b are the tail, c is medium, d is the head and absent from the test images.

    a: 1 of 1 hit, 1 false: 1/2. b: 2 of 4 hit, 0 false: 1/2. c: 3 of 3 hit, 1 false: 3/4.
    """
    matrix = np.array([[1, 0, 0, 0], [1, 2, 1, 0], [0, 0, 3, 0], [0, 0, 0, 0]])
    got = summarise(matrix, ["a", "b", "c", "d"], [1, 50, 99, 200])
    assert got["iou"] == pytest.approx({"a": 1 / 2, "b": 1 / 2, "c": 3 / 4, "d": math.nan}, nan_ok=True)
    assert got["miou"] == pytest.approx(7 / 12)
    assert got["pixel_accuracy"] == pytest.approx(6 / 8)
    # Dice 2/3, 2/3 and 6/7: their mean is 46/63
    assert got["dice_error"] == pytest.approx(17 / 63)
    # four classes in three groups: the tail holds two, a and b
    assert (got["miou_tail"], got["miou_medium"]) == pytest.approx((1 / 2, 3 / 4))
    assert math.isnan(got["miou_head"])
    assert got["absent_classes"] == 1


@pytest.mark.parametrize("pixels", [[990, 10], [0, 10], [10, 0], [0, 0]])
@pytest.mark.filterwarnings("error")
def test_summarise_of_two_classes_is_nan_where_a_group_is_empty(pixels):
    got, groups = summarise(np.array([[8, 1], [1, 2]]), ["background", "object"], pixels), frequency_groups(pixels)
    ious = [8 / 10, 2 / 4]
    assert got["miou"] == pytest.approx(np.mean(ious))
    for name, members in groups.items():
        expected = np.mean([ious[c] for c in members]) if members else math.nan
        assert got[f"miou_{name}"] == pytest.approx(expected, nan_ok=True)


def test_summarise_without_a_labelled_pixel():
    got = summarise(np.zeros((3, 3), dtype=int), ["a", "b", "c"], [1, 2, 3])
    assert got["absent_classes"] == 3
    assert all(math.isnan(got[key]) for key in ("miou", "pixel_accuracy", "dice_error", "miou_tail", "miou_head"))


def test_summarise_wants_a_name_per_class():
    with pytest.raises(ValueError, match="zip"):
        summarise(np.eye(3), ["a", "b"], [1, 2, 3])


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.5, 1.0]))
def test_fine_grained_is_that_of_a_loop_over_images_and_classes(seed, worst):
    rng = np.random.default_rng(seed)
    N, C = rng.integers(1, 8), rng.integers(1, 6)
    truth, predicted = rng.integers(0, rng.integers(1, C + 1), (N, 9)), rng.integers(0, C, (N, 9))
    of_image, of_class = [[] for _ in range(N)], [[] for _ in range(C)]
    for i in range(N):
        for c in set(truth[i].tolist()):
            both = sum(t == p == c for t, p in zip(truth[i], predicted[i], strict=True))
            either = sum(c in (t, p) for t, p in zip(truth[i], predicted[i], strict=True))
            of_image[i].append(both / either)
            of_class[c].append(both / either)
    classes = [sorted(scores) for scores in of_class if scores]
    lowest = [scores[: max(1, int(worst * len(scores)))] for scores in classes]
    counts = np.array(
        [[[((t == c) & (p == c)).sum(), (t == c).sum(), (p == c).sum()] for c in range(C)]
         for t, p in zip(truth, predicted, strict=True)]
    )  # fmt: skip
    expected = {"miou_image": of_image, "miou_class": classes, "miou_worst": lowest}
    expected = {name: np.mean([np.mean(scores) for scores in groups]) for name, groups in expected.items()}
    assert fine_grained(counts, worst) == pytest.approx(expected)
    if worst == 1:
        assert fine_grained(counts, 1)["miou_worst"] == pytest.approx(expected["miou_class"])
    assert math.isnan(fine_grained(np.zeros((N, C, 3)))["miou_image"])


@pytest.mark.parametrize(("truth", "guess", "name"), [([0, 3], [0, 0], "target"), ([0, 255], [-1, 0], "prediction")])
def test_a_class_that_is_none_is_refused(truth, guess, name):
    "It would be counted in another cell, or in another image."
    with pytest.raises(ValueError, match=f"{name} holds .* expected classes 0..2"):
        confusion_matrix(torch.tensor([[guess], [[0, 0]]]), torch.tensor([[truth], [[0, 0]]]), classes=3)
