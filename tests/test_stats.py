"""Intervals over images and seeds, against slow loops, known distributions and scipy; verdicts on clear cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pat.metrics import fine_grained
from pat.stats import (
    Difference,
    Scatter,
    bootstrap_accuracy,
    bootstrap_fine_grained,
    bootstrap_iou,
    bootstrap_miou,
    detectable,
    image_draws,
    interval,
    p_value,
    paired,
    pooled_scatter,
    power,
    read_off,
    seeds_to_decide,
    shared_scatter,
    signs,
    verdict,
)


def counts(rng, images=20, quality=0.8):
    "Random counts (N, 3, 3) of three classes of 100 labelled pixels each."
    hit = rng.binomial(100, quality, size=(images, 3))
    return np.stack([hit, np.full_like(hit, 100), hit + rng.integers(0, 30, hit.shape)], -1)


# --- images


def test_bootstrap_agrees_with_drawing_images_in_a_loop():
    rng = np.random.default_rng(3)
    data = counts(rng, images=12)
    slow = []
    for _ in range(3000):
        hit, labelled, predicted = data[rng.integers(12, size=12)].sum(0).T
        slow.append((hit / (labelled + predicted - hit)).mean())
    fast = bootstrap_miou(data[None], draws=3000)
    assert fast.shape == (3000, 1)
    assert np.allclose(interval(fast), np.quantile(slow, [0.025, 0.975]), atol=0.004)
    assert np.isclose(fast.mean(), np.mean(slow), atol=0.001)


def test_bootstrap_agrees_with_scipy():
    # images of one class and of equal size, nothing else predicted: IoU is a mean over images
    hits = np.random.default_rng(5).integers(0, 101, size=60)
    data = np.stack([hits, np.full(60, 100), hits], -1)[None, :, None]
    theirs = stats.bootstrap((hits / 100,), np.mean, n_resamples=5000, method="percentile", rng=1).confidence_interval
    assert np.allclose(interval(bootstrap_miou(data, draws=5000)), theirs, atol=0.006)


def test_iou_of_each_class_on_the_only_draw_of_one_image():
    counts = np.array([[[[50, 100, 50], [30, 40, 60], [0, 0, 0]]]])  # hit, labelled, predicted
    iou = bootstrap_iou(counts, draws=2)
    assert iou.shape == (2, 1, 3) and np.allclose(iou[:, 0, :2], [50 / 100, 30 / 70]) and np.isnan(iou[..., 2]).all()


def test_bootstrap_leaves_absent_classes_out():
    data = np.array([[[50, 100, 100], [0, 0, 0]]])  # one image, the second class nowhere
    assert np.allclose(bootstrap_miou(data[None]), 50 / 150)
    assert np.isnan(bootstrap_miou(data[None], members=[1])).all()


def test_bootstrap_is_paired_and_repeatable():
    data = counts(np.random.default_rng(1))[None]
    assert np.array_equal(bootstrap_miou(data), bootstrap_miou(data))
    assert not np.array_equal(bootstrap_miou(data), bootstrap_miou(data, seed=1))
    worse = data.copy()
    worse[..., 0] -= 5  # in every image and class: what is left of the images cancels
    paired, unpaired = (bootstrap_miou(data) - bootstrap_miou(worse, seed=seed) for seed in (0, 1))
    assert paired.std() < unpaired.std() / 5


def test_each_seed_has_its_own_column():
    rng = np.random.default_rng(2)
    both = np.stack([counts(rng), counts(rng, quality=0.5)])
    together = bootstrap_miou(both)
    assert together.shape == (1000, 2)
    for s in (0, 1):
        assert np.array_equal(together[:, s], bootstrap_miou(both[s : s + 1])[:, 0])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), absent=st.floats(0, 0.9))
def test_fine_grained_scores_of_a_draw_are_those_of_its_images(seed, absent):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 50, size=(1, 25, 3, 3))
    data[..., 1:] += data[..., :1]
    data[..., :2] *= (rng.random((1, 25, 3)) >= absent)[..., None]  # nothing of the class, nothing hit
    fast = bootstrap_fine_grained(data, draws=4)
    for row, weights in enumerate(image_draws(25, 4)):
        slow = fine_grained(data[0, np.repeat(np.arange(25), weights)])
        for metric, value in slow.items():
            assert np.isclose(fast[metric][row, 0], value, equal_nan=True), metric


# --- seeds


def test_interval_of_one_seed_is_the_percentile_interval():
    samples = np.random.default_rng(0).normal(size=(1000, 1))
    assert np.allclose(interval(samples), np.quantile(samples, [0.025, 0.975]))
    assert np.allclose(interval(samples, 0.8), np.quantile(samples, [0.1, 0.9]))


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_interval_of_seeds_alone_is_the_t_interval(level):
    values = np.array([0.40, 0.43, 0.41, 0.46])
    theirs = stats.t.interval(level, 3, values.mean(), stats.sem(values))
    assert np.allclose(interval(np.tile(values, (5000, 1)), level), theirs, atol=2e-3)


def test_both_levels_add_up():
    # means over four seeds: sd of the images 3, error of the seeds 4 and nearly normal: sqrt(9 + 16) = 5
    rng = np.random.default_rng(1)
    seeds = rng.normal(size=200)
    seeds = 4 * np.sqrt(200) * (seeds - seeds.mean()) / seeds.std(ddof=1)
    low, high = interval(seeds + 3 * rng.normal(size=(20000, 1)))
    assert np.allclose([low, high], [-1.96 * 5, 1.96 * 5], rtol=0.03)


def test_intervals_cover_what_they_claim():
    rng, hits = np.random.default_rng(7), 0
    for _ in range(600):
        seeds = rng.normal(0, 1, 3) + rng.normal(0, 0.5)
        low, high = interval(seeds + rng.normal(0, 0.5, (300, 1)))
        hits += low <= 0 <= high
    assert 0.93 < hits / 600 <= 0.99


def test_accuracy_of_a_draw_is_that_of_its_images():
    rng = np.random.default_rng(3)
    hit = rng.integers(0, 50, size=(2, 6, 4))
    made = np.stack([hit, hit + rng.integers(1, 50, size=hit.shape), hit], -1)  # images of unlike sizes
    for draw, found in zip(image_draws(6, draws=3), bootstrap_accuracy(made, draws=3), strict=True):
        images = np.repeat(np.arange(6), draw)
        expected = [one[images, :, 0].sum() / one[images, :, 1].sum() for one in made]
        assert found == pytest.approx(expected)


@given(st.floats(0, 10))
def test_read_off_is_the_line_between_the_points(at):
    x = np.array([5.0, 0, 10])[:, None, None] + np.array([[0.0, 1]])  # the second seed is one further
    y = np.array([1.0, 3, 0])[:, None, None] * np.array([[1.0, 2]])
    found = read_off(np.full((1, 2), at), x, y)[0]
    expected = [np.interp(at, [0, 5, 10], [3, 1, 0]), np.interp(at, [1, 6, 11], [6, 2, 0])]
    assert found == pytest.approx(expected)


# --- seeds, pooled


def test_pooled_scatter_is_the_rest_of_a_two_way_layout():
    scores = np.array([[1.0, 2, 3], [2, 4, 3], [0, 1, 5]])  # rest by hand: grand mean 7/3, means by row and by seed
    rest = scores - scores.mean(1, keepdims=True) - scores.mean(0, keepdims=True) + scores.mean()
    found = pooled_scatter([scores])
    assert found.freedom == 4 and found.sd == pytest.approx(np.sqrt(2 * (rest**2).sum() / 4))
    shifted = scores + np.array([[5], [0], [-3]]) + np.array([9, 0, 1])  # neither what is better nor a luckier seed
    assert pooled_scatter([shifted]).sd == pytest.approx(found.sd)
    both = pooled_scatter([scores, scores])
    assert both.freedom == 8 and both.sd == pytest.approx(found.sd)


def test_of_two_losses_the_pooled_scatter_is_that_of_their_difference():
    scores = np.array([[1.0, 2, 3, 7], [2, 4, 3, 1]])
    assert pooled_scatter([scores]).sd == pytest.approx((scores[0] - scores[1]).std(ddof=1))


def test_what_cannot_be_pooled():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 5))
    assert pooled_scatter([scores]) is not None
    assert pooled_scatter([scores * np.array([[100], [1], [1], [1], [1], [1]])]) is None
    for alone in ([scores[:1]], [scores[:, :1]], []):
        assert pooled_scatter(alone) is None
    assert shared_scatter([scores[0]]) is None and shared_scatter([scores[0, :1], scores[1, :1]]) is None
    assert shared_scatter([scores[0], 100 * scores[1]]) is None
    assert shared_scatter([scores[0], scores[1]]).freedom == 8


def test_pooled_intervals_cover_what_they_claim():
    rng, hits = np.random.default_rng(7), 0
    for _ in range(1000):
        scores = rng.normal(0, 3, 3) + rng.normal(size=(5, 3))
        own = (scores[0] - scores[1] + rng.normal(0, 0.5))[None] + rng.normal(0, 0.5, (200, 1))
        low, high = paired(own, pooled_scatter([scores])).interval()
        hits += low <= 0 <= high
    assert 0.93 < hits / 1000 < 0.97


def part(value, seeds=3, sd=0.1, images=0.1):
    return Difference(value, images, Scatter(sd if seeds > 1 else 0.0, seeds - 1), seeds)


def test_half_of_an_interval_by_hand():
    both = part(1, seeds=4, sd=0.8, images=0.3)
    z, t = stats.norm.ppf(0.975), stats.t.ppf(0.975, 3)
    assert both.interval() == pytest.approx([1 - np.hypot(0.3 * z, 0.4 * t), 1 + np.hypot(0.3 * z, 0.4 * t)])
    assert part(1, sd=0, images=0.5).interval() == pytest.approx([1 - 0.5 * z, 1 + 0.5 * z])


@given(st.floats(-3, 3), st.floats(0.01, 2), st.floats(0, 2), st.floats(-1, 1))
def test_the_chance_is_that_of_the_interval_that_reaches_the_threshold(value, sd, images, threshold):
    each = part(value, sd=sd, images=images)
    chance = p_value(each, threshold)
    assert 0 <= chance <= 1 and p_value(part(value, seeds=1), threshold) == 1
    if 1e-12 < chance < 1:
        low, high = each.interval(1 - chance)
        assert min(abs(low - threshold), abs(high - threshold)) < 1e-3 * (high - low)


def test_the_chance_of_seeds_alone_is_that_of_the_t_test():
    per_seed = np.array([0.3, 1.1, 0.4, 0.9])
    assert p_value(paired(np.tile(per_seed, (9, 1))), 0.1) == pytest.approx(stats.ttest_1samp(per_seed, 0.1).pvalue)


# --- verdicts


@pytest.mark.parametrize(
    ("parts", "threshold", "expected"),
    [
        ([part(1), part(2)], 0, ("holds", 0, 0.95)),
        ([part(1), part(-2)], 0, ("fails", 1, 0.975)),
        ([part(1), part(0)], 0, ("undecided", 1, 0.975)),
        ([part(-0.6)], -1, ("holds", 0, 0.95)),  # not worse by as much as 1
        ([part(-2)], -1, ("fails", 0, 0.95)),
        ([part(9, seeds=1)], 0, ("undecided", 0, 0.95)),  # one seed decides nothing
        ([part(9), part(9, seeds=1)], 0, ("undecided", 1, 0.975)),
        ([part(-9), part(9, seeds=1)], 0, ("fails", 0, 0.975)),  # but one sound counterexample is enough
        ([part(-9, seeds=1), part(9)], 0, ("undecided", 0, 0.975)),
    ],
)
def test_verdicts(parts, threshold, expected):
    outcome, which, level = verdict(parts, threshold)
    assert (outcome, which) == expected[:2] and level == pytest.approx(expected[2])


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(0.01, 2)), min_size=1, max_size=6))
def test_the_deciding_interval_says_what_the_verdict_says(values):
    parts = [part(value, sd=sd) for value, sd in values]
    outcome, which, level = verdict(parts)
    low, high = parts[which].interval(level)
    assert outcome == ("holds" if low > 0 else "fails" if high < 0 else "undecided")


@pytest.mark.slow
def test_a_claim_of_many_parts_does_not_fail_by_chance():
    # twenty differences that are all zero: at 95 % one of them would lie below in most trials
    rng, failed = np.random.default_rng(4), 0
    for _ in range(100):
        parts = [paired(rng.normal(0, 1, 3) + 0.1 * rng.normal(size=(400, 1))) for _ in range(20)]
        failed += verdict(parts)[0] == "fails"
        assert sum(map(abs, signs(parts))) < 3
    assert failed <= 10


def test_signs_by_hand():
    # standard normal: chances 0.0027, 0.0124, 0.0455; Holm's bounds 0.0167, 0.025, 0.05
    sure = [Difference(value, 1.0, Scatter(0.0, 1), 2) for value in (2.0, -3.0, 2.5)]
    assert signs(sure) == [1, -1, 1]
    assert signs([*sure, *sure]) == [0, -1, 1, 0, -1, 1]  # bounds from 0.0083 on; the last two would have 0.025
    assert signs([*sure, *sure, sure[0]]) == [0, -1, 0, 0, -1, 0, 0]  # and now the third has 0.01
    assert signs([part(-9, seeds=1)]) == [0] and signs([part(2)], threshold=5) == [-1]


# --- power


def test_power_is_the_share_that_is_found():
    rng = np.random.default_rng(3)
    truly, S = 2.0, 3
    found = [paired(np.tile(truly + rng.normal(0, 1, S), (50, 1))).interval()[0] > 0 for _ in range(4000)]
    assert power(Difference(0, 0, Scatter(1, S - 1), S), truly) == pytest.approx(np.mean(found), abs=0.025)


def test_detectable_is_found_with_the_power_asked_for():
    for each in (part(0), part(0, sd=2, images=0), part(0, seeds=5, sd=0)):
        assert power(each, detectable(each)) == pytest.approx(0.8, abs=1e-6)
        assert power(each, detectable(each, wanted=0.5)) == pytest.approx(0.5, abs=1e-6)
    assert detectable(part(0, seeds=1)) == np.inf and power(part(0, seeds=1), 9) == 0
    assert detectable(part(0, sd=0, images=0)) == 0 and power(part(0, sd=0, images=0), 1) == 1


def test_seeds_to_decide_by_hand():
    close = Difference(1, 0, Scatter(1, 2), 3)  # t(S - 1) / sqrt(S) < 1 first holds for S = 7
    assert stats.t.ppf(0.975, 6) / np.sqrt(7) < 1 < stats.t.ppf(0.975, 5) / np.sqrt(6)
    assert seeds_to_decide(close) == 7
    assert seeds_to_decide(part(1, images=2)) is None  # the images alone leave it open
    assert seeds_to_decide(part(5)) == 3
