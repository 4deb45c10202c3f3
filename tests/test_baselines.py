"""The baselines against a loop per pixel, against libraries, at their limits, and with broken input."""

import math
from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import segmentation_models_pytorch.losses as smp
import torch
import torch.nn.functional as F
from hypothesis import given, note
from hypothesis import strategies as st
from plain import minus_log_softmax as nll
from plain import softmax
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import sigmoid_focal_loss

from pat.baselines import adjust_logits, build_loss, known_losses

# Every option of every loss at least once away from its default. `progress` is no option: the training loop sets it.
OPTIONS = {
    "ce": [{}],
    "focal": [{}, {"gamma": 0.5}],
    "pat": [{}, {"beta": "inverse", "alpha": 1, "temperature": 2}, {"beta": "none", "alpha": None}],
    "cb": [
        {},
        {"count": "images"},
        {"count": "images", "beta": 0.999},
        {"beta": 0},
        {"beta": 0.9, "gamma": 1},
        {"beta": None, "gamma": 0.5},
        {"count": "pixels", "beta": 0.999},
        {"count": "pixels", "beta": 0.9999999},
    ],
    "cb-focal": [{}, {"gamma": 0.5}, {"count": "images", "beta": 0.999, "gamma": 5}, {"beta": 0.99, "gamma": 0}],
    "bms": [{}],
    "ldam": [
        {},
        {"scale": 30},
        {"max_margin": 0},
        {"max_margin": 2, "scale": 0.5},
        {"drw": 0.8},
        {"drw": 0.8, "progress": 0.79},
        {"drw": 0.8, "progress": 0.8, "scale": 10},
        {"drw": 0, "beta": 0.99},
        {"drw": 1, "beta": 0, "progress": 1},
        {"progress": 1},  # nothing is ever weighed where drw is None
    ],
    "blv": [
        {},
        {"sigma": 0},
        {"sigma": 0.5},
        {"noise": "uniform"},
        {"noise": "uniform", "sigma": 0.3},
        {"noise": "xavier"},
        {"noise": "xavier", "sigma": 0.7},
    ],
    "logit-adjustment": [{}, {"tau": 0}, {"tau": 0.5}, {"tau": 2}],
    "post-hoc": [{}, {"tau": 0.5}],
    "seesaw": [{}, {"p": 0}, {"q": 0}, {"p": 0, "q": 0}, {"p": 2, "q": 0.5}],
    "cb-released": [{}, {"gamma": 0.5}],
    "cb-focal-released": [{}, {"gamma": 0.5}, {"gamma": 0}],
    "bms-released": [{}],
    "ldam-released": [{}, {"max_margin": 0}, {"max_margin": 2, "scale": 0.5}],
    "blv-released": [{}, {"sigma": 0}, {"sigma": 3}],
    "pat-released": [{}, {"kappa": 0}, {"kappa": 7, "temperature": 3}, {"temperature": 0.5}],
    "dice": [{}, {"smooth": 1}],
    "tversky": [{}, {"alpha": 0.3, "beta": 0.7}, {"alpha": 0.7, "beta": 0.3, "gamma": 1.5}, {"gamma": 2}],
    "lovasz": [{}, {"per_image": True}],
}
CASES = [(name, options) for name, sets in OPTIONS.items() for options in sets]
SMP = ("dice", "tversky", "lovasz")  # no mean over pixels
NOISY = ("blv", "blv-released")
# what each loss cannot do without
NEEDS = [
    ("cb", {}, "class_pixels"),
    ("cb", {"count": "images"}, "class_images"),
    ("cb", {"count": "pixels"}, "class_pixels"),
    ("cb-focal", {}, "class_pixels"),
    ("cb-focal", {"count": "images"}, "class_images"),
    ("bms", {}, "class_pixels"),
    ("ldam", {}, "class_pixels"),
    ("ldam", {"drw": 0.8}, "class_images"),
    ("blv", {}, "class_pixels"),
    ("logit-adjustment", {}, "class_pixels"),
    ("post-hoc", {}, "class_pixels"),
    ("seesaw", {}, "class_pixels"),
]


def cases(*names, without=()):
    "Parametrizes `name` and `options` with the option sets of some losses, by default of all."
    chosen = [(n, o) for n, o in CASES if n not in without and (not names or n in names)]
    return pytest.mark.parametrize(("name", "options"), chosen, ids=[f"{n}-{o}" for n, o in chosen])


each_name = pytest.mark.parametrize("name", OPTIONS)

# four classes from very common to never seen, as on a real training set: too many pixels for float32 to count
PIXELS, IMAGES = torch.tensor([1_234_567_891, 50_021, 37, 0]), torch.tensor([2975, 41, 3, 0])


def make(name, pixels=PIXELS, images=IMAGES, training=True, progress=None, **options):
    loss = build_loss(name, class_pixels=pixels, class_images=images, **options)
    if progress is not None:
        loss.progress = progress
    return loss.train(training)


def seed(number):
    torch.default_generator.manual_seed(number)  # torch.manual_seed sees to every device: a hundred times slower


def value_and_grad(loss, logits, target):
    "With the same noise whenever it is called with logits of one shape and dtype."
    seed(1)
    x = logits.detach().clone().requires_grad_()
    value = loss(x, target)
    return value.detach(), torch.autograd.grad(value, x)[0]


def assert_same(one, other, logits, target, **tolerance):
    "Value and gradient of two losses are equal."
    for a, b in zip(value_and_grad(one, logits, target), value_and_grad(other, logits, target), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def a_batch(C=4, dtype=torch.float64):
    "Two images of all classes, one with a single class, one without a label; one more pixel without a label."
    logits, target = 2 * torch.randn(4, C, 3, 5, dtype=dtype), torch.randint(C, (4, 3, 5))
    target[:2, 2, :C] = torch.arange(C)[:5]
    target[0, 0, 0], target[2], target[3] = 255, C - 1, 255
    return logits, target


def test_every_loss_is_tested():
    assert set(OPTIONS) == set(known_losses())


# --- the reference: numbers and loops


def modulated(z, y, gamma):
    miss = sum(p for k, p in enumerate(softmax(z)) if k != y)  # 1 - p_y, without cancellation
    return miss**gamma * nll(z, y)


def effective_number(k, beta, S=None):
    "(1 - beta) / (1 - beta^k); beta None is 1 - 1 / S."
    if (beta is None and S == 1) or beta == 0:
        return 1.0
    rest = 1 / S if beta is None else 1 - beta
    return rest / -math.expm1(k * math.log1p(-rest))


def class_balanced(counts, beta):
    "Weight of each class; those that the training set holds have mean 1."
    weights = [effective_number(max(c, 1), beta, sum(counts)) for c in counts]
    seen = [w for w, c in zip(weights, counts, strict=True) if c > 0]
    return [w * len(seen) / sum(seen) for w in weights]


def pixel_cb(z, y, at, count="pixels", beta=None, gamma=0):
    return class_balanced(at.m if count == "images" else at.n, beta)[y] * modulated(z, y, gamma)


def pixel_bms(z, y, at):
    return nll([v + math.log(max(n, 1)) for v, n in zip(z, at.n, strict=True)] if at.training else z, y)


def with_margin(z, y, margin, scale):
    return nll([scale * (v - margin * (k == y)) for k, v in enumerate(z)], y)


def pixel_ldam(z, y, at, max_margin=0.5, scale=1, drw=None, beta=0.9999, progress=0):
    if not at.training:
        return with_margin(z, y, 0, scale)
    largest = max(n**-0.25 for n in at.n if n > 0)
    margin = min(max_margin * max(at.n[y], 1) ** -0.25 / largest, max_margin)
    weight = class_balanced(at.m, beta)[y] if drw is not None and progress >= drw else 1
    return weight * with_margin(z, y, margin, scale)


def shaken(z, noise, frequency):
    scale = max(frequency) or 1
    moved = [abs(min(max(d, -1), 1)) * f / scale for d, f in zip(noise, frequency, strict=True)]
    return [v + d for v, d in zip(z, moved, strict=True)]


def pixel_blv(z, y, at, **_):
    frequency = [math.log(sum(at.n)) - math.log(max(n, 1)) for n in at.n]
    return nll(shaken(z, at.noise, frequency) if at.training else z, y)


def pixel_logit_adjustment(z, y, at, tau=1):
    prior = [max(n, 1) / sum(max(n, 1) for n in at.n) for n in at.n]
    return nll([v + tau * math.log(p) for v, p in zip(z, prior, strict=True)] if at.training else z, y)


def seesaw_logits(z, y, at, p=0.8, q=2):
    s, N = softmax(z), [max(c, 1) for c in at.seen]
    mitigation = [p * min(math.log(N[j]) - math.log(N[y]), 0) for j in range(len(z))]
    compensation = [q * max(math.log(s[j]) - math.log(s[y]), 0) for j in range(len(z))]
    return [v + a + b for v, a, b in zip(z, mitigation, compensation, strict=True)]


def pixel_seesaw(z, y, at, **options):
    return nll(seesaw_logits(z, y, at, **options), y)


def pixel_cb_released(z, y, at, gamma=0):
    return effective_number(at.b[y], None, sum(at.b)) * modulated(z, y, gamma)


def pixel_bms_released(z, y, at):
    return nll([b * math.exp(min(v, 10)) for v, b in zip(z, at.b, strict=True)], y)


def pixel_ldam_released(z, y, at, max_margin=0.5, scale=30):
    powers = [(b + 1e-4) ** -0.25 for b in at.b]
    return with_margin(z, y, powers[y] * max_margin / max(powers), scale)


def pixel_blv_released(z, y, at, **_):
    return nll(shaken(z, at.noise, [math.log(max(b, 1)) for b in at.b]) if at.training else z, y)


def pixel_pat_released(z, y, at, kappa=None, temperature=1):
    C, soft = len(z), [v / temperature for v in z]
    kappa = min(C, 60) if kappa is None else kappa
    return math.exp(kappa * (1 - softmax(soft)[y])) / 2 * nll(soft, y) / C


PIXEL = {
    "ce": lambda z, y, at: nll(z, y),
    "focal": lambda z, y, at, gamma=2: modulated(z, y, gamma),
    "cb": pixel_cb,
    "cb-focal": partial(pixel_cb, gamma=2),
    "bms": pixel_bms,
    "ldam": pixel_ldam,
    "blv": pixel_blv,
    "logit-adjustment": pixel_logit_adjustment,
    "post-hoc": lambda z, y, at, tau=1: nll(z, y),  # to train with, it is cross-entropy
    "seesaw": pixel_seesaw,
    "cb-released": pixel_cb_released,
    "cb-focal-released": partial(pixel_cb_released, gamma=2),
    "bms-released": pixel_bms_released,
    "ldam-released": pixel_ldam_released,
    "blv-released": pixel_blv_released,
    "pat-released": pixel_pat_released,
}
NOT_A_MEAN = ("pat", *SMP)
MEANS = [name for name in OPTIONS if name not in NOT_A_MEAN]


def draw_noise(name, shape, dtype, sigma=None, noise="gaussian"):
    "The numbers that `value_and_grad` makes a noisy loss draw."
    seed(1)
    sigma = {"blv": 4, "blv-released": 1}[name] if sigma is None else sigma
    d = torch.empty(shape, dtype=dtype)
    if noise == "xavier":
        return torch.nn.init.xavier_normal_(d, gain=sigma)
    return d.normal_(0, sigma) if noise == "gaussian" else d.uniform_(-sigma, sigma)


def labelled(name, logits, target, options, pixels, images, training=True, seen=None):
    "Of each labelled pixel its logits (a list), its label, and what else its loss depends on."
    B, C, H, W = logits.shape
    z, y = logits.tolist(), target.tolist()
    batch = Counter(label for image in y for row in image for label in row)
    b = [batch[c] for c in range(C)]
    seen = [s + new * training for s, new in zip(seen or [0] * C, b, strict=True)]
    every = {"n": pixels.tolist(), "m": images.tolist(), "b": b, "seen": seen, "training": training}
    noise = draw_noise(name, logits.shape, logits.dtype, **options).tolist() if name in NOISY else None
    for i, h, w in np.ndindex(B, H, W):
        if y[i][h][w] != 255:
            at = SimpleNamespace(**every, noise=noise and [noise[i][c][h][w] for c in range(C)])
            yield [z[i][c][h][w] for c in range(C)], y[i][h][w], at


def reference(name, logits, target, options, pixels=PIXELS, images=IMAGES, training=True, seen=None):
    "The loss, one pixel after the other."
    pixels = list(labelled(name, logits, target, options, pixels, images, training, seen))
    return sum(PIXEL[name](*pixel, **options) for pixel in pixels) / max(len(pixels), 1)


@cases(without=NOT_A_MEAN)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scale", [1, 5])
def test_value_is_that_of_the_loop(name, options, training, scale):
    logits, target = a_batch()
    value, _ = value_and_grad(make(name, training=training, **options), scale * logits, target)
    expected = reference(name, scale * logits, target, options, training=training)
    assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("absent", [[0], [3], [0, 1, 3]])
def test_loop_agrees_where_classes_are_missing_from_the_batch(name, absent):
    "Their counts in the batch are 0, which the released losses turn into weights and margins."
    logits, target = a_batch()
    target = torch.where(torch.isin(target, torch.tensor([*absent, 255])), 255, target)
    for options in OPTIONS[name]:
        value, _ = value_and_grad(make(name, **options), logits, target)
        assert value.item() == pytest.approx(reference(name, logits, target, options), rel=1e-6), options


@cases("seesaw")
def test_seesaw_counts_what_it_has_seen(name, options):
    "Three batches in a row: the counts are those of all so far; not of those seen in eval()."
    loss, seen = make(name, **options), [0, 0, 0, 0]
    for step in range(3):
        logits, target = a_batch()
        target[:, step] = step
        loss.eval()
        value = loss(logits, target)
        assert value.item() == pytest.approx(
            reference(name, logits, target, options, training=False, seen=seen), rel=1e-6
        )
        loss.train()
        value = loss(logits, target)
        assert value.item() == pytest.approx(reference(name, logits, target, options, seen=seen), rel=1e-6)
        seen = [s + int((target == c).sum()) for c, s in enumerate(seen)]
        assert loss.counts.tolist() == seen


def test_cb_in_float32_has_the_weights_of_float64():
    "1 - beta^k cancels where beta is close to 1: the weights are no place for float32."
    logits, target = a_batch()
    for options in OPTIONS["cb"]:
        value = make("cb", **options)(logits.float(), target)
        assert value.item() == pytest.approx(reference("cb", logits, target, options), rel=1e-5)


def test_counts_may_be_float():
    logits, target = a_batch()
    for name, options in CASES:
        loss = make(name, **options), make(name, PIXELS.double(), IMAGES.float(), **options)
        assert_same(*loss, logits, target)


# --- worked by hand


def row(*logits_of_each_pixel):
    "One image of one row: (1, C, 1, pixels)."
    return torch.tensor(logits_of_each_pixel, dtype=torch.float64).T[None, :, None]


def labels(*each_pixel):
    return torch.tensor([[each_pixel]])


log2 = math.log(2)
HAND = {
    # beta = 1/2, counts 1, 2, 0: 1, (1/2) / (3/4) = 2/3 and 1, over the mean of the first two 5/6; -log p = log 3
    "cb: weights 6/5, 4/5, 6/5": (
        ("cb", {"beta": 0.5}, [1, 2, 0], [9, 9, 9]),
        (row([0, 0, 0], [0, 0, 0], [0, 0, 0]), labels(0, 1, 2)),
        (6 / 5 + 4 / 5 + 6 / 5) / 3 * math.log(3),
    ),
    # 1 + 3 images, beta None = 3/4: (1/4) / (1/4) = 1 and (1/4) / (1 - 27/64) = 16/37, mean 53/74
    "cb: beta from the counts": (
        ("cb", {}, [1, 3, 0], [9, 9, 9]),
        (row([0, 0, 0], [0, 0, 0]), labels(1, 255)),
        32 / 53 * math.log(3),
    ),
    # -log p = log 4, (1 - p)^2 = 9/16, the weights 1, 2/3 over their mean
    "cb-focal": (
        ("cb-focal", {"beta": 0.5}, [1, 2, 0, 0], [9, 9, 9, 9]),
        (row([0, 0, 0, 0]), labels(1)),
        4 / 5 * 9 / 16 * 2 * log2,
    ),
    # logits 0, counts 8, 4, 0: odds 8 : 4 : 1
    "bms": (("bms", {}, [8, 4, 0], [1, 1, 1]), (row([0, 0, 0], [0, 0, 0]), labels(0, 2)), math.log(13 * 13 / 8) / 2),
    # the same odds squared
    "logit-adjustment": (
        ("logit-adjustment", {"tau": 2}, [8, 4, 0], [1, 1, 1]),
        (row([0, 0, 0], [0, 0, 0]), labels(0, 2)),
        math.log(81 * 81 / 64) / 2,
    ),
    # n^(-1/4) = 1/4, 1/2 and, never seen, 1, of which 1/2 is the largest that counts: margins 1/4, 1/2, 1/2
    "ldam: margins 1/4, 1/2, 1/2": (
        ("ldam", {"scale": 4 * log2}, [256, 16, 0], [1, 1, 1]),
        (row([1 / 4, 0, 0], [0, 3 / 4, 0], [0, 0, 1]), labels(0, 1, 2)),
        # 1 : 1 : 1, then 2 : 1 : 1, then 4 : 1 : 1
        (math.log(3) + math.log(2) + math.log(3 / 2)) / 3,
    ),
    # clamped at 1 whatever was drawn: f / max f = log(8/6) / log 8, 2/3, 1
    "blv: all of the noise": (
        ("blv", {"sigma": 1e9}, [6, 2, 0], [1, 1, 1]),
        (row([-math.log(8 / 6) / math.log(8), -2 / 3, -1], [0, 0, 0]), labels(0, 255)),
        math.log(3),
    ),
    # batch 4, 2, 1, 0 pixels: g = 2 log 2, log 2, 0, 0 over 2 log 2
    "blv-released: all of the noise": (
        ("blv-released", {"sigma": 1e9}, [1] * 4, [1] * 4),
        (row(*[[-1, -1 / 2, 0, 0]] * 7), labels(0, 0, 0, 0, 1, 1, 2)),
        2 * log2,
    ),
    # batch 4, 2, 1: label 0 divides the odds of the rarer ones by 2 and 4, label 1 those of 2 by 2
    "seesaw: mitigation": (
        ("seesaw", {"p": 1}, [1] * 3, [1] * 3),
        (row(*[[0, 0, 0]] * 7), labels(0, 0, 0, 0, 1, 1, 2)),
        (4 * math.log(7 / 4) + 2 * math.log(5 / 2) + math.log(3)) / 7,
    ),
    # odds 4 : 2 : 1, label 2: times 4 and 2 once more
    "seesaw: compensation": (
        ("seesaw", {"p": 0, "q": 1}, [1] * 3, [1] * 3),
        (row([2 * log2, log2, 0]), labels(2)),
        math.log(21),
    ),
    # 3 of 4 pixels and 1: beta = 3/4: (1/4) / (1 - 27/64) = 16/37 and 1
    "cb-released": (
        ("cb-released", {}, [1, 1], [1, 1]),
        (row(*[[0, 0]] * 5), labels(0, 0, 0, 1, 255)),
        (3 * 16 / 37 + 1) / 4 * log2,
    ),
    # (1 - p)^2 = 1/4
    "cb-focal-released": (
        ("cb-focal-released", {}, [1, 1], [1, 1]),
        (row(*[[0, 0]] * 5), labels(0, 0, 0, 1, 255)),
        (3 * 16 / 37 + 1) / 16 * log2,
    ),
    "cb-released: a single pixel weighs 1": (("cb-released", {}, [1, 1], [1, 1]), (row([0, 0]), labels(1)), log2),
    # the second exp: b_c exp(z_c) = 2 (log 2) / 2, 1 (log 4), 0 (a logit of 0): odds 2 : 4 : 1
    "bms-released: exp of exp": (
        ("bms-released", {}, [1] * 3, [1] * 3),
        (row(*[[math.log(log2 / 2), math.log(2 * log2), 5]] * 3), labels(0, 0, 1)),
        (2 * math.log(7 / 2) + math.log(7 / 4)) / 3,
    ),
    # one pixel of class 0, 15 of class 1 (logits that make it certain), none of class 2, which sets the scale of the
    # margins: (1e-4)^(-1/4) = 10; those of 0 and 1 are 1/2 (1 + 1e-4)^(-1/4) / 10 and 1/2 (15 + 1e-4)^(-1/4) / 10
    "ldam-released: an absent class": (
        ("ldam-released", {"scale": 20 * 1.0001**0.25 * log2}, [1] * 3, [1] * 3),
        (row([0, 0, 0], *[[0, 999, 0]] * 15), labels(0, *[1] * 15)),
        math.log(5) / 16,  # odds 1/2 : 1 : 1
    ),
    # p = 1/4, 3/4: exp(kappa (1 - p)) = 4^(3/4 * 4/3) = 4 and 4^(1/3)
    "pat-released": (
        ("pat-released", {"kappa": 4 / 3 * math.log(4)}, [1, 1], [1, 1]),
        (row([0, math.log(3)], [0, math.log(3)]), labels(0, 1)),
        (4 * math.log(4) + 4 ** (1 / 3) * math.log(4 / 3)) / 8,
    ),
    # T = 2 takes the root of the odds 1 : 9, in the logarithm too
    "pat-released: temperature": (
        ("pat-released", {"kappa": 0, "temperature": 2}, [1, 1], [1, 1]),
        (row([0, 2 * math.log(3)]), labels(0)),
        math.log(4) / 4,
    ),
    # p of the label 1/2, 1/2, 3/4: sums of p 5/4, 7/4, twice the true 1 and 5/4 over 5/4 + 2, 7/4 + 1
    "dice": (
        ("dice", {}, [1, 1], [1, 1]),
        (row([0, 0], [0, 0], [0, math.log(3)], [7, 0]), labels(0, 1, 1, 255)),
        (1 - 2 * (1 / 2) / (5 / 4 + 1) + 1 - 2 * (5 / 4) / (7 / 4 + 2)) / 2,
    ),
}


@pytest.mark.parametrize(("how", "batch", "expected"), HAND.values(), ids=HAND)
def test_worked_by_hand(how, batch, expected):
    name, options, pixels, images = how
    value, _ = value_and_grad(make(name, torch.tensor(pixels), torch.tensor(images), **options), *batch)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_bms_released_stops_at_10():
    target = labels(0, 1)
    value, gradient = value_and_grad(make("bms-released"), row([9, 20, 0, 0], [9.5, 20, 0, 0]), target)
    same, _ = value_and_grad(make("bms-released"), row([9, 10, 0, 0], [9.5, 10, 0, 0]), target)
    assert value == same and (gradient[0, 1] == 0).all() and (gradient[0, 0, 0, 0] != 0)


def test_kappa_of_pat_released_is_the_number_of_classes_up_to_60():
    for C, kappa in [(1, 1), (3, 3), (60, 60), (61, 60), (150, 60)]:
        counts = torch.ones(2, C)
        logits, target = a_batch(C)
        losses = make("pat-released", *counts), make("pat-released", *counts, kappa=kappa)
        assert_same(*losses, logits, target)


# --- libraries


def test_cb_is_weighted_cross_entropy():
    "Over the number of labelled pixels; torch's own mean is over the sum of their weights."
    logits, target = a_batch()
    weight = torch.tensor(class_balanced(IMAGES.tolist(), 0.999), dtype=torch.float64)

    def weighted(z, y):
        return F.cross_entropy(z, y, weight, ignore_index=255, reduction="sum") / (y != 255).sum()

    assert_same(make("cb", count="images", beta=0.999), weighted, logits, target)


@pytest.mark.parametrize("gamma", [0.5, 2, 5])
def test_cb_focal_is_kornias_weighted_focal_loss(gamma):
    "kornia's own mean is over C times all pixels, ignored ones too."
    kornia = pytest.importorskip("kornia.losses")
    logits, target = a_batch()
    weight = torch.tensor(class_balanced(IMAGES.tolist(), 0.999), dtype=torch.float64)

    def weighted(z, y):
        each = kornia.focal_loss(z, y, alpha=None, gamma=gamma, weight=weight, ignore_index=255, reduction="sum")
        return each / (y != 255).sum()

    assert_same(make("cb-focal", count="images", beta=0.999, gamma=gamma), weighted, logits, target)


def test_cb_focal_of_two_classes_is_torchvisions():
    """With softmax over two classes p is the sigmoid of z_1 - z_0, and alpha the share of class 1 in the weights.

    smp's FocalLoss("multiclass") is one such sigmoid loss per class, whatever their number: no softmax, so it does not
    agree with any loss here.
    """
    logits, target = torch.randn(2, 2, 3, 4, dtype=torch.float64), torch.randint(2, (2, 3, 4))
    counts = torch.tensor([700, 9])
    w = class_balanced(counts.tolist(), 0.999)

    def sigmoid(z, y):
        alpha = w[1] / sum(w)
        return sum(w) * sigmoid_focal_loss(z[:, 1] - z[:, 0], y.double(), alpha=alpha, gamma=2, reduction="mean")

    assert_same(make("cb-focal", counts, counts, beta=0.999), sigmoid, logits, target)


@cases(*SMP)
def test_smp(name, options):
    "float32, the dtype that smp's Lovász loss can compute in."
    cls = {"dice": smp.DiceLoss, "tversky": smp.TverskyLoss, "lovasz": smp.LovaszLoss}[name]
    logits, target = a_batch(dtype=torch.float32)
    batch = logits[:3], target[:3]  # smp's Lovász loss per image has the shape (0, C) with an unlabelled image
    assert_same(make(name, **options), cls("multiclass", ignore_index=255, **options), *batch)


@pytest.mark.parametrize(
    ("name", "options", "kornia_name", "kornia_options"),
    [
        ("dice", {}, "dice_loss", {"average": "macro"}),
        ("tversky", {"alpha": 0.2, "beta": 0.9}, "tversky_loss", {"alpha": 0.2, "beta": 0.9}),
    ],
)
def test_kornias_overlap_losses(name, options, kornia_name, kornia_options):
    """Only of one image that holds every class.

    kornia takes the mean over the images of one score each, over the classes that the image holds; smp has one score
    for the batch, in which an absent class counts as 0. kornia adds its epsilon where smp only keeps 0 / 0 away.
    """
    kornia = getattr(pytest.importorskip("kornia.losses"), kornia_name)
    logits, target = (one[:1] for one in a_batch())
    theirs = partial(kornia, ignore_index=255, eps=0, **kornia_options)
    assert_same(make(name, **options), theirs, logits, target)


def test_kornias_lovasz_loss():
    "Image by image, and only where each holds every class: kornia's mean is over all classes; it ignores no label."
    kornia = pytest.importorskip("kornia.losses")
    logits, target = (one[:2] for one in a_batch(dtype=torch.float32))
    assert_same(
        make("lovasz", per_image=True), kornia.lovasz_softmax_loss, logits, torch.where(target == 255, 2, target)
    )


# --- derivatives


@cases(without=["seesaw", "lovasz"])
def test_gradcheck(name, options):
    logits = torch.randn(2, 4, 1, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[[0, 0, 1]], [[2, 255, 0]]])
    loss = make(name, **options)

    def seeded(z):
        seed(1)
        return loss(z, target)

    assert torch.autograd.gradcheck(seeded, logits)


def lovasz_formula(z, y, per_image=False):
    """Sum over the errors of a class, the largest first, of error times what it adds to 1 - IoU.

    Mean over the classes there, of all images together or image by image.
    """
    if per_image:
        return sum(lovasz_formula(z[i : i + 1], y[i : i + 1]) for i in range(len(z))) / len(z)
    p, losses = z.softmax(1).movedim(1, -1)[y != 255], []
    for c in set(y[y != 255].tolist()):
        true = (y[y != 255] == c).tolist()
        errors = [1 - one if t else one for one, t in zip(p[:, c], true, strict=True)]
        missed, added, before, total = 0, 0, 0.0, torch.zeros((), dtype=z.dtype)
        for k in sorted(range(len(true)), key=lambda k: -errors[k].item()):
            missed, added = missed + true[k], added + (not true[k])
            jaccard = 1 - (sum(true) - missed) / (sum(true) + added)
            total, before = total + errors[k] * (jaccard - before), jaccard
        losses.append(total)
    return sum(losses) / len(losses)


@cases("lovasz")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lovasz_is_its_formula(name, options, dtype):
    "Value and gradient; smp computes a part of it in float32 whatever the logits."
    logits, target = (one[:3] for one in a_batch(dtype=dtype))
    assert_same(make(name, **options), partial(lovasz_formula, **options), logits, target, rtol=1e-4, atol=1e-6)


@cases("seesaw")
def test_seesaw_passes_no_gradient_through_its_factors(name, options):
    "As if what is added to the logits were constants."
    logits, target = a_batch()
    pixels = list(labelled(name, logits, target, options, PIXELS, IMAGES))
    added = [np.subtract(seesaw_logits(*pixel, **options), pixel[0]) for pixel in pixels]
    constant = torch.zeros_like(logits).movedim(1, -1)
    constant[target != 255] = torch.tensor(np.array(added))

    def frozen(z, y):
        return F.cross_entropy(z + constant.movedim(-1, 1), y, ignore_index=255)

    assert_same(make(name, **options), frozen, logits, target, rtol=1e-6, atol=1e-9)


# --- identities


EQUAL = torch.full((4,), 12_345)
# the name and options of two losses that are one, for any counts or for equal ones
SAME = [
    (("cb", {}), ("ce", {}), EQUAL),
    (("cb", {"beta": None}), ("ce", {}), EQUAL),
    (("cb", {"count": "pixels", "beta": 0.9}), ("ce", {}), EQUAL),
    (("cb-focal", {}), ("focal", {}), EQUAL),
    (("cb", {"beta": 0}), ("ce", {}), PIXELS),
    (("cb", {"gamma": 2}), ("cb-focal", {}), PIXELS),
    (("cb-focal", {"gamma": 0, "count": "pixels"}), ("cb", {"count": "pixels"}), PIXELS),
    (("bms", {}), ("ce", {}), EQUAL),
    (("blv", {"sigma": 0}), ("ce", {}), PIXELS),
    (("blv", {"sigma": 0, "noise": "uniform"}), ("ce", {}), PIXELS),
    (("blv", {"sigma": 0, "noise": "xavier"}), ("ce", {}), PIXELS),
    (("blv", {"sigma": 1e9}), ("blv", {"sigma": 1e9, "noise": "uniform"}), PIXELS),  # clamped at 1, all of them
    (("blv", {"sigma": 1e9}), ("blv", {"sigma": 1e9, "noise": "xavier"}), PIXELS),
    (("ldam", {"max_margin": 0, "scale": 1}), ("ce", {}), PIXELS),
    (("ldam", {"drw": 0.5, "progress": 0.49}), ("ldam", {}), PIXELS),
    (("ldam", {"max_margin": 0, "scale": 1, "drw": 0.5, "progress": 0.5}), ("cb", {"beta": 0.9999}), PIXELS),
    (("logit-adjustment", {"tau": 0}), ("ce", {}), PIXELS),
    (("logit-adjustment", {}), ("bms", {}), PIXELS),
    (("post-hoc", {"tau": 3}), ("ce", {}), PIXELS),
    (("logit-adjustment", {"tau": 3}), ("ce", {}), EQUAL),
    (("seesaw", {"p": 0, "q": 0}), ("ce", {}), PIXELS),
    (("cb-released", {"gamma": 2}), ("cb-focal-released", {}), PIXELS),
    (("ldam-released", {"max_margin": 0, "scale": 1}), ("ce", {}), PIXELS),
    (("blv-released", {"sigma": 0}), ("ce", {}), PIXELS),
    (("tversky", {}), ("dice", {}), PIXELS),
]


@pytest.mark.parametrize(("one", "other", "counts"), SAME, ids=[f"{a}-{b}" for a, b, _ in SAME])
def test_losses_that_are_one(one, other, counts):
    losses = [make(name, counts, counts, **options) for name, options in (one, other)]
    assert_same(*losses, *a_batch())


def test_a_blv_of_classes_as_common_as_each_other_shakes_them_alike():
    "f is the same for all, so all of the noise is one constant per pixel, which softmax does not see."
    assert_same(make("blv", EQUAL, sigma=1e9), make("ce"), *a_batch())
    assert_same(make("blv", torch.tensor([99, 0, 0, 0]), sigma=1e9), PlusOne(1, 2, 3), *a_batch())
    counts = torch.tensor([99])
    assert_same(make("blv", counts), make("ce"), *a_batch(1))  # max f is 0


@pytest.mark.parametrize("noise", ["gaussian", "uniform", "xavier"])
def test_the_noise_does_not_depend_on_the_memory_layout(noise):
    logits, target = a_batch()
    loss = make("blv", noise=noise)
    one, other = logits, logits.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(value_and_grad(loss, one, target), value_and_grad(loss, other, target))


class PlusOne:
    "Cross-entropy with 1 more for the logits of some classes."

    def __init__(self, *classes):
        self.classes = torch.tensor(classes)

    def __call__(self, z, y):
        return F.cross_entropy(z.index_add(1, self.classes, torch.ones_like(z[:, self.classes])), y, ignore_index=255)


def test_released_losses_of_a_balanced_batch():
    "Four pixels of each of three classes."
    logits, target = torch.randn(2, 3, 2, 3, dtype=torch.float64), torch.arange(12).view(2, 2, 3) % 3
    counts = torch.full((3,), 4)

    def scaled(factor, name, move=0.0):
        return lambda z, y: factor * make(name, counts, counts)(z + move * F.one_hot(y, 3).movedim(-1, 1), y)

    weight = (1 / 12) / (1 - (11 / 12) ** 4)
    assert_same(make("cb-released"), scaled(weight, "ce"), logits, target)
    assert_same(make("cb-focal-released"), scaled(weight, "focal"), logits, target)
    assert_same(make("pat-released", kappa=0), scaled(1 / 6, "ce"), logits, target)
    assert_same(make("ldam-released", scale=1), scaled(1, "ce", -0.5), logits, target)
    assert_same(make("ldam", counts, counts, scale=1), scaled(1, "ce", -0.5), logits, target)
    assert_same(make("blv-released", sigma=1e9), scaled(1, "ce"), logits, target)

    def twice_exponential(z, y):
        return F.cross_entropy(4 * z.exp(), y)

    assert_same(make("bms-released"), twice_exponential, logits, target)


def test_lovasz_of_one_image_is_that_of_the_batch():
    logits, target = a_batch(dtype=torch.float32)
    for i in range(4):
        assert_same(make("lovasz", per_image=True), make("lovasz"), logits[i : i + 1], target[i : i + 1])


@pytest.mark.parametrize("name", ["bms", "blv", "logit-adjustment", "ldam", "blv-released"])
def test_eval_is_plain_cross_entropy(name):
    "What the losses do to the logits belongs to training; LDAM's scale belongs to the classifier."
    logits, target = a_batch()
    for options in OPTIONS[name]:
        loss = make(name, training=False, **options)
        scale = options.get("scale", 1) if name == "ldam" else 1
        assert_same(loss, lambda z, y, scale=scale: make("ce")(scale * z, y), logits, target)
        # and back
        trained = value_and_grad(loss.train(), logits, target)[0]
        assert trained.item() == pytest.approx(reference(name, logits, target, options), rel=1e-6)


@cases()
@pytest.mark.parametrize("training", [True, False])
def test_only_the_noisy_draw_noise_and_only_in_training(name, options, training):
    logits, target = a_batch()
    loss = make(name, training=training, **options)
    before = torch.get_rng_state()
    first = loss(logits, target)
    drawn = not torch.equal(before, torch.get_rng_state())
    if name in NOISY and training:
        assert options.get("sigma") == 0 or (drawn and loss(logits, target) != first)
    else:
        assert not drawn


@each_name
def test_eval_leaves_the_loss_as_it_is(name):
    logits, target = a_batch()
    for options in OPTIONS[name]:
        loss = make(name, training=False, **options)
        state = {k: v.clone() for k, v in loss.state_dict().items()}
        first = value_and_grad(loss, logits, target)
        second = value_and_grad(loss, logits, target)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert all(torch.equal(v, state[k]) for k, v in loss.state_dict().items())


@cases()
def test_what_it_is_given_stays_as_it_is(name, options):
    "Also where no gradient would notice that the logits were written to."
    logits, target = a_batch(dtype=torch.float32)
    before, expected = (logits.clone(), target.clone()), value_and_grad(make(name, **options), logits, target)[0]
    seed(1)
    with torch.no_grad():
        assert make(name, **options)(logits, target) == expected
    assert torch.equal(logits, before[0]) and torch.equal(target, before[1])


def test_progress_starts_at_0():
    assert make("ldam").progress == 0


# --- seesaw's memory


def test_seesaw_goes_on_after_a_reload():
    loss = make("seesaw")
    for _ in range(3):
        loss(*a_batch())
    again = make("seesaw")
    again.load_state_dict(loss.state_dict())
    assert again.counts.sum() == loss.counts.sum() > 0
    for _ in range(2):
        batch = a_batch()
        assert all(
            torch.equal(a, b) for a, b in zip(value_and_grad(loss, *batch), value_and_grad(again, *batch), strict=True)
        )
        assert torch.equal(loss.counts, again.counts)
    assert not torch.equal(value_and_grad(make("seesaw"), *batch)[0], value_and_grad(again, *batch)[0])


def test_seesaw_counts_beyond_what_float32_can():
    loss = make("seesaw")
    loss.counts.fill_(2**31)
    loss(torch.zeros(1, 4, 1, 1), torch.ones(1, 1, 1, dtype=torch.int64))
    assert [int(c) - 2**31 for c in loss.counts] == [0, 1, 0, 0]


def test_seesaw_counts_nothing_where_nothing_is_labelled():
    loss = make("seesaw")
    loss(torch.zeros(1, 4, 1, 2), labels(255, 255))
    assert loss.counts.tolist() == [0, 0, 0, 0]


# --- properties of every loss


@st.composite
def batches(draw, max_classes=150, scales=(0, 0.1, 1, 10, 100)):
    """Logits of any size, labels of which any classes and any share of pixels may be missing, counts with any zeros.

    Every loss is tried on each batch (drawing one takes longer), with some of its options, in training or eval().
    """
    C = draw(st.integers(1, max_classes))
    B, H, W = draw(st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 1, 3), (1, 3, 2), (2, 2, 2), (3, 1, 2)]))
    ignored, scale = draw(st.sampled_from([0, 0.2, 0.5, 0.9, 1])), draw(st.sampled_from(scales))
    absent = draw(st.sampled_from([0, 0.5, 0.9, 1]))  # share of the classes without a pixel, 1: all but one
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = scale * rng.standard_normal((B, C, H, W))
    there = rng.random(C) >= absent
    there[rng.integers(C)] = True
    target = rng.choice(np.flatnonzero(there), (B, H, W))
    target[rng.random((B, H, W)) < ignored] = 255
    # the counts need not know the classes of the batch: what is rare in training may be common in it
    pixels, images = ((10 ** rng.uniform(0, most, C)).astype(np.int64) for most in (10, 4))
    for counts in (pixels, images):
        seen = rng.random(C) >= absent
        seen[rng.integers(C)] = True
        counts *= seen
    batch = SimpleNamespace(logits=torch.from_numpy(logits).float(), target=torch.from_numpy(target).long())
    batch.counts = torch.from_numpy(pixels), torch.from_numpy(images)
    batch.options = {name: sets[rng.integers(len(sets))] for name, sets in OPTIONS.items()}
    batch.training = draw(st.booleans())
    return batch


def tried_on(batch, names=OPTIONS):
    "The name of each loss and a function that gives it; afresh where it remembers what it has seen."
    for name in names:
        note(f"{name} {batch.options[name]} training={batch.training}")  # the last of these is the one that fails
        one = partial(make, name, *batch.counts, training=batch.training, **batch.options[name])
        yield name, one if name == "seesaw" else partial(lambda loss: loss, one())


def close(a, b, rtol=1e-6, atol=1e-6):
    "torch.testing.assert_close, which takes longer than a loss does."
    return a.dtype == b.dtype and bool(((a - b).abs() <= atol + rtol * b.abs()).logical_or_(a == b).all())


@given(batch=batches(max_classes=6))
def test_loop_agrees_on_any_batch(batch):
    logits = batch.logits.double().clamp(-15, 15)  # where 1 - p is exact enough to compare
    for name, get in tried_on(batch, MEANS):
        value = value_and_grad(get(), logits, batch.target)[0].item()
        expected = reference(name, logits, batch.target, batch.options[name], *batch.counts, batch.training)
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(batch=batches(), noise=st.sampled_from([-1e4, -3.0, 7.0, 1e4]), ignore_index=st.sampled_from([0, -100, 255]))
def test_finite_and_blind_to_ignored_pixels(batch, noise, ignore_index):
    "Whatever the label they are known by: torch's own default, or 0, an id that is a class when it is not ignored."
    logits, target = batch.logits, batch.target
    if ignore_index == 0:
        target = torch.where(target == 0, 255, target)
    ignored = (target == 255)[:, None]
    other = torch.where(ignored, logits.flip(1) + noise * torch.arange(1, logits.shape[1] + 1)[:, None, None], logits)
    other_target = torch.where(target == 255, ignore_index, target)
    for name, get in tried_on(batch):
        value, gradient = value_and_grad(get(), logits, target)
        assert value.shape == () and value.dtype == torch.float32
        assert value.isfinite() and value >= 0 and gradient.isfinite().all()
        assert not gradient.masked_select(ignored).any()
        loss = make(name, *batch.counts, training=batch.training, ignore_index=ignore_index, **batch.options[name])
        other_value, other_gradient = value_and_grad(loss, other, other_target)
        if name in SMP:
            assert close(other_value, value) and close(other_gradient, gradient)
        else:  # bit by bit
            assert value == other_value and torch.equal(gradient, other_gradient)


@given(batch=batches(), data=st.data())
def test_renaming_the_classes_renames_the_gradient(batch, data):
    C, logits, target = batch.logits.shape[1], batch.logits.double(), batch.target
    old = torch.randperm(C, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))  # of each new one
    new = torch.full((256,), 255).scatter(0, old, torch.arange(C))
    renamed = SimpleNamespace(**vars(batch) | {"counts": tuple(counts[old] for counts in batch.counts)})
    sigma = data.draw(st.sampled_from([0, 1e12]))  # no noise, or all of it clamped at 1
    for name in NOISY:
        batch.options[name] = batch.options[name] | {"sigma": sigma}
    for (_, get), (_, make_renamed) in zip(tried_on(batch), tried_on(renamed), strict=True):
        value, gradient = value_and_grad(get(), logits, target)
        renamed_value, renamed_gradient = value_and_grad(make_renamed(), logits[:, old], new[target])
        assert close(renamed_value, value) and close(renamed_gradient, gradient[:, old])


def assert_finite_as_in_float32(gradient, expected):
    """Finite but where float32's is too large for float16: what cannot be represented is inf.

    Only the exp(kappa) of pat and pat-released comes so far.
    """
    assert expected.isfinite().all() and not gradient.isnan().any()
    assert (gradient.isfinite() | (expected.abs() > 0.99 * torch.finfo(gradient.dtype).max)).all()


HALF, WHOLE = [torch.float16, torch.bfloat16], torch.float32


@given(
    batch=batches(),
    dtypes=st.sampled_from([(a, None) for a in HALF] + [(a, a) for a in HALF] + [(WHOLE, a) for a in HALF]),
)
def test_half_precision_and_autocast(batch, dtypes):
    "Logits of half precision are computed with in float32, and so are those of float32 where autocast is on."
    dtype, autocast = dtypes
    logits = batch.logits.to(dtype)
    for _, get in tried_on(batch):
        expected, expected_gradient = value_and_grad(get(), logits.float(), batch.target)
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            value, gradient = value_and_grad(get(), logits, batch.target)
        assert close(value, expected, rtol=1e-5) and gradient.dtype == dtype
        assert_finite_as_in_float32(gradient, expected_gradient)
        rtol = 1e-5 if dtype == WHOLE else 2 * torch.finfo(dtype).eps
        assert close(gradient, expected_gradient.to(dtype), rtol=rtol)


@given(
    batch=batches(scales=[1]),
    dtype=st.sampled_from([WHOLE, *HALF]),
    kind=st.sampled_from(["right", "wrong", "any"]),
)
def test_huge_logits_stay_finite(batch, dtype, kind):
    "The label's logit towers above the others, or they above it, or they are anything of -1e4, 0 and 1e4."
    target = batch.target
    if kind == "any":
        logits = 1e4 * batch.logits.sign() * (batch.logits.abs() > 0.4)
    else:
        index = target.masked_fill(target == 255, 0)[:, None]
        logits = torch.full_like(batch.logits, -1e4).scatter(1, index, 1e4) * (1 if kind == "right" else -1)
    logits = logits.to(dtype)
    for name, get in tried_on(batch):
        value, gradient = value_and_grad(get(), logits, target)
        assert value.isfinite() and value >= 0
        if dtype == torch.float16:
            assert_finite_as_in_float32(gradient, value_and_grad(get(), logits.float(), target)[1])
        else:
            assert gradient.isfinite().all()
        if kind == "right" and name not in ("bms-released", *SMP):
            assert value == 0
        if kind == "wrong" and logits.shape[1] > 1 and (target != 255).any() and name in ("bms", "blv", "seesaw"):
            assert value > 1e3


@given(batch=batches())
def test_nothing_labelled_gives_zero_and_keeps_the_graph(batch):
    for _, get in tried_on(batch):
        value, gradient = value_and_grad(get(), batch.logits, torch.full_like(batch.target, 255))
        assert value.shape == () and value == 0 and not gradient.any()


@pytest.mark.parametrize("gamma", [0.5, 0.75])
def test_tversky_is_refused_or_finite_where_its_slope_is_infinite(gamma):
    "Where the overlap is perfect, x^gamma with gamma < 1 has no derivative: no reason for NaN in the weights."
    try:
        loss = make("tversky", gamma=gamma)
    except ValueError as error:
        assert f"gamma is {gamma}, expected" in str(error)
        return
    for logits in (row([1e4, 0, 0, 0], [0, 1e4, 0, 0]), row([1, 0, 0, 0], [0, 1, 0, 0])):
        value, gradient = value_and_grad(loss, logits, labels(0, 1))
        assert value.isfinite() and gradient.isfinite().all()


@cases()
def test_counts_that_are_all_zero(name, options):
    logits, target = a_batch(dtype=torch.float32)
    value, gradient = value_and_grad(make(name, *torch.zeros(2, 4), **options), logits, target)
    assert value.isfinite() and gradient.isfinite().all()


# --- errors


@cases()
def test_a_label_that_is_no_class(name, options):
    counts, logits = torch.ones(2, 3), torch.zeros(1, 3, 1, 4)
    loss = make(name, *counts, **options)
    with pytest.raises(ValueError, match=r"target holds \[7\], expected labels 0..2 or ignore_index 255"):
        loss(logits, labels(0, 7, 2, 255))
    with pytest.raises(ValueError, match=r"target holds \[-1, 3\], expected labels 0..2 or ignore_index 255"):
        loss(logits, labels(3, 255, -1, 3))
    loss = make(name, *counts, ignore_index=7, **options)
    loss(logits, labels(0, 7, 2, 7))
    with pytest.raises(ValueError, match=r"target holds \[255\], expected labels 0..2 or ignore_index 7"):
        loss(logits, labels(0, 7, 2, 255))


@pytest.mark.parametrize(("name", "options", "counts"), NEEDS)
def test_missing_counts(name, options, counts):
    "The message names the loss, as params.yaml or as Python calls it, and what it needs."
    others = {"class_pixels": PIXELS, "class_images": IMAGES}
    del others[counts]
    known = known_losses()[name]
    python_name = getattr(known, "func", known).__name__  # func: of a class with other defaults
    with pytest.raises(ValueError, match=rf"\b({name}|{python_name})\b.*{counts}"):
        build_loss(name, **others, **options)
    with pytest.raises(ValueError, match=r"class_(pixels|images)"):
        build_loss(name, **options)


@pytest.mark.parametrize(("name", "options", "counts"), [n for n in NEEDS if n[1] != {"drw": 0.8}])
def test_only_the_counts_that_a_loss_needs(name, options, counts):
    build_loss(name, **{counts: torch.ones(3)}, **options)(torch.zeros(1, 3, 1, 2), labels(0, 2))


@pytest.mark.parametrize("name", [n for n in OPTIONS if n not in [need[0] for need in NEEDS]])
def test_losses_that_need_no_counts(name):
    build_loss(name)(torch.zeros(1, 3, 1, 2), labels(0, 2))


@pytest.mark.parametrize(("name", "options", "counts"), NEEDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("length", [1, 3, 5])
def test_counts_of_another_number_of_classes(name, options, counts, training, length):
    "1 too, which torch would stretch to any number."
    given_counts = {"class_pixels": torch.ones(4), "class_images": torch.ones(4)} | {counts: torch.ones(length)}
    with pytest.raises(ValueError, match=rf"\b{length}\b"):
        build_loss(name, **given_counts, **options).train(training)(torch.zeros(1, 4, 1, 2), labels(0, 0))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("focal", {"gamma": -1}),
        ("cb", {"gamma": -0.5}),
        ("cb", {"beta": 1}),
        ("cb", {"beta": 1.5}),
        ("cb", {"beta": -0.1}),
        ("cb", {"count": "masks"}),
        ("cb-focal", {"gamma": -0.5}),
        ("cb-focal", {"beta": 1}),
        ("cb-focal", {"count": "masks"}),
        ("ldam", {"max_margin": -0.1}),
        ("ldam", {"scale": 0}),
        ("ldam", {"scale": -30}),
        ("ldam", {"drw": -0.1}),
        ("ldam", {"drw": 1.1}),
        ("ldam", {"beta": 1}),
        ("ldam", {"beta": -0.1}),
        ("blv", {"sigma": -1}),
        ("blv", {"noise": "normal"}),
        ("logit-adjustment", {"tau": -1}),
        ("cb-released", {"gamma": -0.5}),
        ("cb-focal-released", {"gamma": -0.5}),
        ("ldam-released", {"max_margin": -0.1}),
        ("ldam-released", {"scale": 0}),
        ("blv-released", {"sigma": -1}),
        ("tversky", {"gamma": -1}),
    ],
)
def test_bad_option_fails_when_the_loss_is_made(name, options):
    ((option, value),) = options.items()
    message = (
        rf"unknown value of {option} '{value}'.*There are"
        if isinstance(value, str)
        else rf"{option} is {value}, expected"
    )
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@each_name
def test_unknown_option_lists_what_there_is(name):
    options = {option for options in OPTIONS[name] for option in options} - {"progress"}
    with pytest.raises(ValueError, match="'colour'") as error:
        make(name, colour="red")
    assert all(option in str(error.value) for option in options | {"ignore_index"})


def test_unknown_loss_lists_what_there_is():
    with pytest.raises(ValueError, match="unknown loss 'balanced'") as error:
        build_loss("balanced", class_pixels=PIXELS, class_images=IMAGES)
    assert all(name in str(error.value) for name in known_losses())


# --- after the training


def test_adjusting_logits_undoes_what_the_loss_adds():
    logits, target = a_batch()
    trained = make("logit-adjustment", tau=1.5)
    undone = adjust_logits(logits, PIXELS, tau=1.5)
    expected = make("ce")(logits, target)
    torch.testing.assert_close(trained(undone, target), expected, rtol=1e-6, atol=0)  # it keeps float32 counts


def test_adjusted_logits_by_hand():
    "p = 1/2, 1/4, 1/4 and shares of 8/11, 2/11, 1/11: p / share is as 1 : 2 : 4, and with tau = 1/2 the roots decide."
    logits, counts = torch.tensor([[1 / 2, 1 / 4, 1 / 4]]).double().log(), torch.tensor([8, 2, 1])
    torch.testing.assert_close(adjust_logits(logits, counts).softmax(1), torch.tensor([[1, 2, 4]]).double() / 7)
    roots = torch.tensor([[8**-0.5 / 2, 2**-0.5 / 4, 1 / 4]]).double()
    torch.testing.assert_close(adjust_logits(logits, counts, tau=0.5).softmax(1), roots / roots.sum())
    assert torch.equal(adjust_logits(logits, counts, tau=0), logits)


@pytest.mark.parametrize("size", [(), (5,), (2, 3), (2, 3, 2)])
def test_adjusting_keeps_shape_and_dtype(size):
    for dtype in (torch.float16, torch.float32, torch.float64):
        adjusted = adjust_logits(torch.zeros(2, 4, *size, dtype=dtype), PIXELS)
        assert adjusted.shape == (2, 4, *size) and adjusted.dtype == dtype and adjusted.isfinite().all()


@pytest.mark.parametrize(
    ("counts", "tau", "message"),
    [
        (PIXELS[:3], 1, "class_pixels has 3 counts, expected one for each of 4 channels"),
        (None, 1, "adjust_logits needs class_pixels"),
        (-PIXELS, 1, "expected a count of 0 or more"),
        (PIXELS, -1, "tau is -1, expected a number of at least 0"),
    ],
)
def test_adjusting_with_counts_or_tau_that_cannot_be(counts, tau, message):
    with pytest.raises(ValueError, match=message):
        adjust_logits(torch.zeros(1, 4, 2, 2), counts, tau)


# --- any shape, any precision, any place


@each_name
@pytest.mark.parametrize("size", [(), (24,), (2, 3, 4)])
def test_any_number_of_spatial_dimensions(name, size):
    "The pixels of an image in another arrangement, and MONAI's channel of one: the same loss."
    logits, target = torch.randn(2, 4, *size, dtype=torch.float64), torch.randint(4, (2, *size))
    image = logits.reshape(2, 4, -1, 1), target.reshape(2, -1, 1)
    values = []
    for batch in ((logits, target), (logits, target[:, None]), image):
        seed(0)
        values.append(make(name, **({"sigma": 1e9} if name in NOISY else {}))(*batch))
    torch.testing.assert_close(values[0], values[2])
    assert values[0] == values[1]


def test_seesaw_counts_in_half_precision():
    "A network in half precision takes its loss along: float16 ends at 65504."
    loss = make("seesaw").half()
    for _ in range(3):
        loss(torch.zeros(1, 4, 200, 200).half(), torch.zeros(1, 200, 200).long())
    assert loss.counts.tolist() == [120_000, 0, 0, 0]


@each_name
def test_no_float64_where_a_device_has_none(name):
    "As Apple's GPUs: an error from any operation that makes a float64 tensor. Counts are read on the host."

    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor) and x.dtype == torch.float64]
            assert not made, f"{function} makes float64"
            return result

    loss = make(name)
    assert all(buffer.dtype != torch.float64 for buffer in loss.buffers())
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    with NoFloat64():
        loss(logits, torch.randint(4, (2, 3, 3))).backward()


@each_name
@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_is_no_class_is_never_a_number_when_compiled(name, label):
    torch._dynamo.reset()
    logits, target = torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))
    target[0, 0, 0] = label
    assert torch.compile(make(name), backend="eager")(logits, target).isnan()


def test_defaults_do_not_saturate():
    "The gradient that reaches raw logits of a size that networks have is of cross-entropy's size, whatever the loss."
    logits = 3 * torch.randn(4, 4, 8, 8, requires_grad=True)
    target = torch.randint(4, (4, 8, 8))
    norm = {}
    for name in ("ce", "cb", "bms", "ldam", "blv", "logit-adjustment", "pat"):
        counts = torch.tensor([8000, 900, 80, 20])
        (grad,) = torch.autograd.grad(make(name, counts, counts)(logits, target), logits)
        norm[name] = grad.norm().item()
    assert all(0.1 < value / norm["ce"] < 5 for value in norm.values()), norm
