"""Intervals over images and seeds, against slow loops, known distributions and scipy; verdicts on clear cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pat.metrics import fine_grained
from pat.stats import bootstrap_fine_grained, bootstrap_miou, image_draws, interval, seeds_to_decide, verdict


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


# --- verdicts


def difference(mean, seeds=3, scatter=0.1, images=0.1, seed=0):
    "Samples (1000, S) with a given mean, whatever is drawn."
    rng = np.random.default_rng(seed)
    spread, noise = rng.normal(size=seeds), rng.normal(size=(1000, 1))
    return mean + scatter * (spread - spread.mean()) + images * (noise - noise.mean())


@pytest.mark.parametrize(
    ("differences", "threshold", "expected"),
    [
        ([difference(1), difference(2)], 0, "holds"),
        ([difference(1), difference(-2)], 0, "fails"),
        ([difference(1), difference(0)], 0, "undecided"),
        ([difference(-0.6)], -1, "holds"),  # not worse by as much as 1
        ([difference(-2)], -1, "fails"),
        ([difference(9, seeds=1)], 0, "undecided"),  # one seed decides nothing
        ([difference(9), difference(9, seeds=1)], 0, "undecided"),
        ([difference(-9), difference(9, seeds=1)], 0, "fails"),  # but one sound counterexample is enough
        ([], 0, "undecided"),
    ],
)
def test_verdicts(differences, threshold, expected):
    assert verdict(differences, threshold) == expected


def test_a_claim_of_many_parts_does_not_fail_by_chance():
    # twenty differences that are all zero: at 95 % one of them would lie below in most trials
    rng, failed = np.random.default_rng(4), 0
    for _ in range(100):
        parts = [rng.normal(0, 1, 3) + 0.1 * rng.normal(size=(400, 1)) for _ in range(20)]
        failed += verdict(parts) == "fails"
    assert failed <= 10


def test_seeds_to_decide_by_hand():
    per_seed = 1 + np.array([-1.0, 0.0, 1.0])  # mean 1, sd 1: t(S - 1) / sqrt(S) < 1 first holds for S = 7
    assert stats.t.ppf(0.975, 6) / np.sqrt(7) < 1 < stats.t.ppf(0.975, 5) / np.sqrt(6)
    assert seeds_to_decide(np.tile(per_seed, (100, 1))) == 7
    assert seeds_to_decide(difference(1, images=2)) is None  # the images alone leave it open
    assert seeds_to_decide(difference(5)) == 3
