"""The losses against a plain loop per pixel, their gradients, their invariants and their errors."""

import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain import minus_log_softmax, softmax

from pat.baselines import build_loss
from pat.kernel import check_labels, check_target, weighted_nll
from pat.losses import (
    CrossEntropyLoss,
    FocalLoss,
    PATLoss,
    beta_of,
    class_sizes,
    cross_entropy,
    focal_loss,
    focal_weight,
    mask_size_weight,
    pat_loss,
    pixel_nll,
    pixel_weight,
)
from pat.released import ReleasedPATLoss

# every option of every loss at least once away from its default
FOCAL = [{"gamma": gamma} for gamma in (0, 0.5, 1, 2, 5)]
PAT = [
    {},
    {"alpha": 0},
    {"alpha": 1, "scale": "paper"},
    {"alpha": None},
    {"alpha": None, "scale": "paper", "kappa": 4, "log_temperature": True, "temperature": 2},
    {"beta": "none"},
    {"beta": "none", "alpha": 0.25, "log_temperature": True, "temperature": 2},
    {"beta": "inverse", "alpha": 1},
    {"beta": "inverse", "epsilon": 1e-3, "temperature": 0.5},
    {"beta": "inverse", "temperature": 20, "scale": "paper"},
    {"beta": "inverse", "detach_beta": True},
    {"temperature": 2, "log_temperature": True},
    {"temperature": 3, "log_temperature": True},  # no power of two: dividing rounds
    {"detach_beta": True},
    {"temperature": 3, "detach_beta": True, "alpha": 0.25},
    {"kappa": 0},
    {"kappa": 5, "temperature": 2, "alpha": 0},
    {"temperature": 0.5, "log_temperature": True, "detach_beta": True},
    {"reduction": "sum"},
    {"reduction": "sum", "beta": "inverse", "alpha": 0.25},
]
CASES = [(cross_entropy, {})] + [(focal_loss, options) for options in FOCAL] + [(pat_loss, options) for options in PAT]
every_loss = pytest.mark.parametrize(("loss", "options"), CASES, ids=[f"{f.__name__}-{o}" for f, o in CASES])
each_kind = pytest.mark.parametrize("kind", [cross_entropy, focal_loss, pat_loss])


def value_and_grad(loss, logits, target):
    x = logits.detach().clone().requires_grad_()
    value = loss(x, target)
    return value.detach(), torch.autograd.grad(value, x)[0]


# --- the reference: numbers and loops, with the gradient written out by hand


def pixel_cross_entropy(z, y):
    "Value and gradient at one pixel with logits `z` and label `y`."
    p = softmax(z)
    return minus_log_softmax(z, y), [p[k] - (k == y) for k in range(len(z))]


def pixel_focal(z, y, gamma=2.0):
    p, nll = softmax(z), minus_log_softmax(z, y)
    miss = sum(p[k] for k in range(len(z)) if k != y)
    gradient = []
    for k in range(len(z)):
        dp = p[y] * ((k == y) - p[k])
        # with one class 1 - p is 0, and so is every derivative
        slope = -gamma * miss ** (gamma - 1) * dp * nll if miss and gamma else 0.0
        gradient.append(slope + miss**gamma * (p[k] - (k == y)))
    return miss**gamma * nll, gradient


def beta_at(p, beta, kappa, epsilon):
    "Value and derivative of beta at probability `p`."
    if beta == "none":
        return 1, 0
    if beta == "inverse":
        return 1 / (p + epsilon), -1 / (p + epsilon) ** 2
    return math.exp(kappa * (1 - p)) / 2, -kappa * math.exp(kappa * (1 - p)) / 2


def pixel_pat(z, y, beta="exponential", temperature=1, epsilon=0.1, kappa=3, detach_beta=False,
              log_temperature=False, scale="ce"):  # fmt: skip
    classes, soft = range(len(z)), [v / temperature for v in z]
    p, p_T = softmax(z), softmax(soft)
    dp_T = [p_T[y] * ((k == y) - p_T[k]) / temperature for k in classes]
    weight, slope = beta_at(p_T[y], beta, kappa, epsilon)
    if log_temperature:
        nll, dnll = minus_log_softmax(soft, y), [(p_T[k] - (k == y)) / temperature for k in classes]
    else:
        nll, dnll = minus_log_softmax(z, y), [p[k] - (k == y) for k in classes]
    moving = 0 if detach_beta else slope
    factor = 1 / (len(z) * beta_at(1 / len(z), beta, kappa, epsilon)[0]) if scale == "ce" else 1
    return factor * weight * nll, [factor * (weight * dnll[k] + moving * dp_T[k] * nll) for k in classes]


def reference(loss, logits, target, ignore_index=255, **options):
    "Value (float) and gradient (array like `logits`) of a loss, one pixel after the other."
    alpha, reduction = options.pop("alpha", 0.5), options.pop("reduction", "mean")
    pixel = {cross_entropy: pixel_cross_entropy, focal_loss: pixel_focal, pat_loss: pixel_pat}[loss]
    z, y = logits.tolist(), target.tolist()
    B, C, H, W = logits.shape
    masks = [Counter(label for row in image for label in row if label != ignore_index) for image in y]
    labelled_pixels, labelled_images = sum(sum(m.values()) for m in masks), sum(bool(m) for m in masks)
    value, gradient = 0.0, np.zeros(logits.shape)
    for i in range(B):
        norm = 0 if alpha is None else sum(n ** (1 - alpha) for n in masks[i].values())
        for h in range(H):
            for w in range(W):
                label = y[i][h][w]
                if label == ignore_index:
                    continue
                one, slope = pixel([z[i][c][h][w] for c in range(C)], label, **options)
                if loss is pat_loss:
                    if alpha is None:
                        weight = C * labelled_images / labelled_pixels
                    else:
                        weight = masks[i][label] ** -alpha * len(masks[i]) / norm
                    weight /= labelled_images if reduction == "mean" else 1
                else:
                    weight = 1 / labelled_pixels
                value += weight * one
                gradient[i, :, h, w] = [weight * s for s in slope]
    return value, gradient


@every_loss
@pytest.mark.parametrize("scale", [1, 8])
def test_value_and_gradient_are_those_of_the_loop(loss, options, scale):
    "Two images of one size of mask each, one without a label, one pixel without a label."
    logits = scale * torch.randn(3, 4, 3, 5, dtype=torch.float64)
    target = torch.randint(4, (3, 3, 5))
    target[0, 0], target[1, 2, 2], target[2] = 3, 255, 255
    value, gradient = value_and_grad(partial(loss, **options), logits, target)
    expected, expected_gradient = reference(loss, logits, target, **options)
    assert value.item() == pytest.approx(expected, rel=1e-6)  # the weights of the masks are float32
    np.testing.assert_allclose(gradient.numpy(), expected_gradient, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"beta": "exponential", "alpha": 0.25, "temperature": 2}])
def test_the_map_holds_every_pixels_share_of_the_sum(options):
    logits, target = torch.randn(2, 3, 2, 4, dtype=torch.float64), torch.randint(3, (2, 2, 4))
    target[1, 0, 1] = 255
    each = pat_loss(logits, target, reduction="none", **options)
    assert each.shape == (2, 2, 4) and each[1, 0, 1] == 0
    for i in range(2):  # one image alone: its share of the sum
        expected, _ = reference(pat_loss, logits[i : i + 1], target[i : i + 1], **options)
        assert each[i].sum().item() == pytest.approx(expected, rel=1e-6)


def log2_example():
    """One row of four pixels, three classes; the logits are log p.

    p of the label: 1/2 (label 0), 1/4 (label 0), 1/4 (label 1); the last pixel has no label.
    -log p: l, 2 l, 2 l with l = log 2. Masks: class 0 has 2 pixels, class 1 has 1, class 2 is absent: K = 2.
    """
    p = torch.tensor([[1 / 2, 1 / 4, 1 / 4, 1 / 3], [1 / 4, 1 / 2, 1 / 4, 1 / 3], [1 / 4, 1 / 4, 1 / 2, 1 / 3]])
    return p.double().log().view(1, 3, 1, 4), torch.tensor([[[0, 0, 1, 255]]])


log2, log6 = math.log(2), math.log(6)
written = partial(pat_loss, beta="inverse", alpha=1, scale="paper")


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # (1 + 2 + 2) l / 3
        (cross_entropy, 5 / 3 * log2),
        # (1 - p)^2 = 1/4, 9/16, 9/16: (1/4 + 9/8 + 9/8) l / 3
        (focal_loss, 5 / 6 * log2),
        # 1 / (p + 1/4) = 4/3, 2, 2: mean of class 0 (4/3 + 4) l / 2, plus class 1 4 l
        (partial(written, epsilon=1 / 4), 20 / 3 * log2),
        # the same pixels, each with weight K / 3 = 2/3: 2/3 (4/3 + 4 + 4) l
        (partial(written, epsilon=1 / 4, alpha=0), 56 / 9 * log2),
        # 16^(1 - p) / 2 = 2, 4, 4: (2 + 8) l / 2 + 8 l
        (partial(pat_loss, kappa=math.log(16), alpha=1, scale="paper"), 13 * log2),
        # the constant of scale="ce": 3 beta(1/3) = 3/2 16^(2/3)
        (partial(pat_loss, kappa=math.log(16), alpha=1), 13 * log2 / (1.5 * 16 ** (2 / 3))),
        # no beta: 3 l / 2 + 2 l; its constant is 1/3
        (partial(pat_loss, beta="none", alpha=1, scale="paper"), 7 / 2 * log2),
        (partial(pat_loss, beta="none", alpha=1), 7 / 6 * log2),
        # no masks either: cross-entropy
        (partial(pat_loss, beta="none", alpha=None), 5 / 3 * log2),
        # T = 1/2 squares p: p_T = (1/4) / (6/16) = 2/3, then (1/16) / (6/16) = 1/6 twice;
        # 1 / (p_T + 1/3) = 1, 2, 2: (1 + 4) l / 2 + 4 l
        (partial(written, epsilon=1 / 3, temperature=1 / 2), 13 / 2 * log2),
        # and with -log p_T = log 3/2, log 6, log 6: (log 3/2 + 2 log 6) / 2 + 2 log 6
        (
            partial(written, epsilon=1 / 3, temperature=1 / 2, log_temperature=True),
            math.log(3 / 2) / 2 + 3 * log6,
        ),
    ],
)
def test_worked_by_hand(loss, expected):
    assert loss(*log2_example()).item() == pytest.approx(expected, rel=1e-6)


def test_an_image_without_a_label_does_not_count_in_the_mean():
    logits, target = log2_example()
    both = torch.cat([logits, logits]), torch.cat([target, torch.full_like(target, 255)])
    assert pat_loss(*both).item() == pytest.approx(pat_loss(logits, target).item())


@every_loss
def test_gradcheck(loss, options):
    "The detached beta is no derivative of the value, so it is checked with beta frozen at its first value."
    logits = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[[0, 0, 1], [2, 255, 0]], [[1, 1, 1], [1, 1, 255]]])
    if not options.get("detach_beta"):
        assert torch.autograd.gradcheck(lambda z: loss(z, target, **options), logits)
        return
    free = {k: v for k, v in options.items() if k != "detach_beta"}
    log_T = options.get("log_temperature", False)
    T = options.get("temperature", 1) if log_T else 1
    nll = torch.nn.functional.cross_entropy(logits.detach() / T, target, ignore_index=255, reduction="none")
    frozen = torch.where(nll > 0, loss(logits, target, **free, reduction="none").detach() / nll, 0) / 2

    def with_frozen_beta(z):
        return (frozen * torch.nn.functional.cross_entropy(z / T, target, ignore_index=255, reduction="none")).sum()

    assert torch.autograd.gradcheck(with_frozen_beta, logits)
    (expected,) = torch.autograd.grad(with_frozen_beta(logits), logits)
    torch.testing.assert_close(value_and_grad(partial(loss, **options), logits, target)[1], expected)


@pytest.mark.parametrize("T", [1.0, 1e-3, 0.5, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [None, 0.5])
def test_saving_memory_changes_nothing(T, dtype, power):
    "The custom gradient against the plain form, p_T^power * F.cross_entropy; T = 1e-3 goes around underflow."
    logits, target = 3 * torch.randn(2, 30, 4, 5, dtype=dtype), torch.randint(30, (2, 4, 5))
    weight, above = torch.rand(2, 2, 4, 5, dtype=dtype)  # a gradient of its own for each pixel
    weight[0, 1] = 0
    plain = partial(torch.nn.functional.cross_entropy, target=target, reduction="none")

    def coefficient(nll):
        return torch.exp(-power * nll), torch.full_like(nll, -power)

    def ours(z, y):
        return (above * weighted_nll(z, y, weight, power and coefficient, T)).sum()

    def expected(z, y):
        return (above * weight * (torch.exp(-power * plain(z / T)) if power else 1) * plain(z)).sum()

    for one, other in zip(value_and_grad(ours, logits, target), value_and_grad(expected, logits, target), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-5)


@pytest.mark.parametrize(
    "coefficient",
    [
        *(partial(focal_weight, gamma=gamma) for gamma in (0.5, 1.0, 2.0, 5.0)),
        *(beta_of("inverse", epsilon=epsilon) for epsilon in (1e-3, 0.1, 1.0)),
        *(beta_of(kappa=kappa) for kappa in (0.0, 1.0, 30.0)),
    ],
)
def test_relative_slopes_are_those_of_autograd(coefficient):
    nll = torch.tensor([1e-6, 0.01, 0.7, 3.0, 50.0], dtype=torch.float64, requires_grad=True)
    phi, share = coefficient(nll)
    (slope,) = torch.autograd.grad(phi.sum(), nll)
    torch.testing.assert_close(share, slope / phi)


def test_no_array_is_kept_without_a_gradient():
    with torch.no_grad():
        assert pixel_nll(torch.randn(1, 3, 2, 2), torch.zeros(1, 2, 2).long()).grad_fn is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": "inverse", "temperature": 2},
        {"log_temperature": True, "temperature": 2},
        {"beta": "none"},
        {"alpha": None, "detach_beta": True},
    ],
)
def test_compiles_into_one_graph(options):
    logits, target = torch.randn(2, 5, 6, 7), torch.randint(5, (2, 6, 7))
    target[0, 0] = 255
    loss = partial(pat_loss, **options)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")  # an error if the graph breaks
    for one, other in zip(value_and_grad(compiled, logits, target), value_and_grad(loss, logits, target), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="target has dtype"):
        torch.compile(loss, backend="aot_eager")(logits, target.int())


# --- properties


@st.composite
def batches(draw, max_classes=20):
    "Logits of any size, and labels of which any classes and any share of pixels may be missing."
    B, C, H, W = (draw(st.integers(1, n)) for n in (3, max_classes, 4, 4))
    present = draw(st.sets(st.integers(0, C - 1), min_size=1))
    ignored = draw(st.sampled_from([0, 0.2, 0.5, 0.9, 1]))
    scale = draw(st.sampled_from([0, 0.1, 1, 10, 100]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = scale * rng.standard_normal((B, C, H, W))
    target = rng.choice(sorted(present), (B, H, W))
    target[rng.random((B, H, W)) < ignored] = 255
    return torch.from_numpy(logits).float(), torch.from_numpy(target).long()


def bound(data, kind):
    "The loss `kind` with some of its options."
    return partial(kind, **data.draw(st.sampled_from([options for loss, options in CASES if loss is kind])))


@each_kind
@given(data=st.data())
def test_value_and_gradient_are_finite(kind, data):
    logits, target = data.draw(batches())
    value, gradient = value_and_grad(bound(data, kind), logits, target)
    assert value.isfinite() and value >= 0 and gradient.isfinite().all()
    assert (gradient.abs().sum(1)[target == 255] == 0).all()


@each_kind
@given(data=st.data())
def test_loop_agrees_on_any_batch(kind, data):
    logits, target = data.draw(batches(max_classes=5))
    loss = bound(data, kind)
    logits = logits.double().clamp(-15, 15)  # where 1 - p is exact enough to compare
    value, gradient = value_and_grad(loss, logits, target)
    expected, expected_gradient = reference(kind, logits, target, **loss.keywords)
    assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-9)
    np.testing.assert_allclose(gradient.numpy(), expected_gradient, rtol=1e-5, atol=1e-8)


@each_kind
@given(data=st.data())
def test_nothing_labelled_gives_zero_and_keeps_the_graph(kind, data):
    logits, target = data.draw(batches())
    logits.requires_grad_()
    value = bound(data, kind)(logits, torch.full_like(target, 255))
    assert value == 0 and value.requires_grad
    value.backward()
    assert (logits.grad == 0).all()


@each_kind
@given(data=st.data())
def test_logits_of_ignored_pixels_do_not_matter(kind, data):
    logits, target = data.draw(batches())
    loss, noise = bound(data, kind), data.draw(st.sampled_from([-1e4, -3.0, 7.0, 1e4]))
    other = torch.where((target == 255)[:, None], logits.flip(1) + noise, logits)
    value, gradient = value_and_grad(loss, logits, target)
    other_value, other_gradient = value_and_grad(loss, other, target)
    assert value == other_value and torch.equal(gradient, other_gradient)


@each_kind
@given(data=st.data())
def test_renaming_the_classes_renames_the_gradient(kind, data):
    logits, target = data.draw(batches())
    loss = bound(data, kind)
    old = torch.tensor(data.draw(st.permutations(range(logits.shape[1]))))  # old class of each new one
    new = torch.full((256,), 255).scatter(0, old, torch.arange(len(old)))
    value, gradient = value_and_grad(loss, logits.double(), target)
    renamed_value, renamed_gradient = value_and_grad(loss, logits.double()[:, old], new[target])
    torch.testing.assert_close(renamed_value, value, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(renamed_gradient, gradient[:, old], rtol=1e-6, atol=1e-9)


@each_kind
@given(data=st.data())
def test_any_ignore_index_means_the_same(kind, data):
    "-100, torch's own default, or 0, an id that is a class when it is not ignored."
    logits, target = data.draw(batches())
    loss, ignore_index = bound(data, kind), data.draw(st.sampled_from([0, -100, 254]))
    if ignore_index == 0:
        target = torch.where(target == 0, 255, target)
    value, gradient = value_and_grad(loss, logits, target)
    other = torch.where(target == 255, ignore_index, target)
    other_value, other_gradient = value_and_grad(partial(loss, ignore_index=ignore_index), logits, other)
    assert value == other_value and torch.equal(gradient, other_gradient)


@given(batch=batches(), alpha=st.sampled_from([0, 0.25, 0.5, 1, 2]))
def test_mask_weights_sum_to_the_number_of_masks(batch, alpha):
    logits, target = batch
    index, labelled = check_target(logits, target)
    sizes = class_sizes(index, labelled, logits.shape[1])
    weight = pixel_weight(mask_size_weight(sizes, alpha), index, labelled)
    for one, label in zip(weight, target, strict=True):
        masks = label[label != 255].unique()
        assert one.sum().item() == pytest.approx(len(masks), rel=1e-5)
        assert all(one[label == c].unique().numel() == 1 for c in masks)  # all pixels of a mask alike
        assert (one[label == 255] == 0).all()


# --- precision


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(loss, options, dtype):
    logits, target = 4 * torch.randn(2, 5, 6, 7), torch.randint(5, (2, 6, 7))
    target[0, 0] = 255
    loss = partial(loss, **options)
    value, gradient = value_and_grad(loss, logits.to(dtype), target)
    same_value, same_gradient = value_and_grad(loss, logits.to(dtype).float(), target)
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(value, same_value)
    torch.testing.assert_close(gradient, same_gradient.to(dtype))
    torch.testing.assert_close(value, loss(logits, target), rtol=0.02, atol=0)  # bfloat16 has 8 bits


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(loss, options, dtype):
    logits, target = 4 * torch.randn(2, 5, 6, 7), torch.randint(5, (2, 6, 7))
    value, gradient = value_and_grad(partial(loss, **options), logits, target)
    with torch.autocast("cpu", dtype=dtype):
        cast_value, cast_gradient = value_and_grad(partial(loss, **options), logits, target)
    assert cast_value.dtype == torch.float32
    torch.testing.assert_close(cast_value, value)
    torch.testing.assert_close(cast_gradient, gradient)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
def test_huge_logits_stay_finite(loss, options, dtype, sign):
    "The label's logit towers above the others, or they above it."
    target = torch.randint(4, (2, 3, 3))
    logits = (torch.full((2, 4, 3, 3), -1e4).scatter(1, target[:, None], 1e4) * sign).to(dtype)
    value, gradient = value_and_grad(partial(loss, **options), logits, target)
    assert value.isfinite() and gradient.isfinite().all()
    assert (value == 0) if sign == 1 else (value > 1e3)


# --- modules and errors


@every_loss
def test_module_is_the_function_with_its_options(loss, options):
    module = {cross_entropy: CrossEntropyLoss, focal_loss: FocalLoss, pat_loss: PATLoss}[loss](**options)
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    assert module(logits, target) == loss(logits, target, **options)


@each_kind
@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(4), torch.zeros(4).long(), r"logits have shape \(4,\), expected \(B, C\) and up to three"),
        (torch.zeros(1, 2, 1, 1, 1, 1), torch.zeros(1).long(), r"logits have shape \(1, 2, 1, 1, 1, 1\), expected"),
        (torch.zeros(1, 3, 4, 5).long(), torch.zeros(1, 4, 5).long(), "logits have dtype torch.int64, expected float"),
        (torch.zeros(2, 3), torch.zeros(3).long(), r"target has shape \(3,\), expected \(2,\) for logits \(2, 3\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3), r"it looks one-hot, pass target.argmax\(1\)"),
        (torch.zeros(1, 3, 4, 5), torch.zeros(1, 3, 4, 5).long(), r"it looks one-hot, pass target.argmax\(1\)"),
        (torch.zeros(1, 3, 4, 5), torch.zeros(1, 4, 5, 3).long(), r"it looks one-hot, pass target.argmax\(-1\)"),
        (torch.zeros(1, 3, 4, 5), torch.zeros(1, 16, 20).long(), r"pass F.interpolate\(logits, target.shape\[1:\], "),
        (
            torch.zeros(1, 3, 4, 5),
            torch.zeros(1, 5, 4).long(),
            r"target has shape \(1, 5, 4\), expected \(1, 4, 5\) for logits \(1, 3, 4, 5\)",
        ),
        (torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 4, 5).long(), r"target has shape \(1, 2, 4, 5\)"),
        (torch.zeros(1, 3, 4, 5), torch.zeros(1, 1, 4, 5).int(), "dtype torch.int32, expected torch.int64: pass"),
        (torch.zeros(1, 3, 4, 5), torch.zeros(1, 4, 5).byte(), r"dtype torch.uint8, expected torch.int64: pass target"),
        (torch.zeros(1, 3, 4, 5), torch.zeros(1, 4, 5), "dtype torch.float32, expected torch.int64"),
        (
            torch.zeros(1, 3, 1, 2),
            torch.tensor([[[3, -1]]]),
            r"target holds \[-1, 3\], expected labels 0..2 or ignore_index 255",
        ),
    ],
)
def test_bad_tensors(kind, logits, target, message):
    with pytest.raises(ValueError, match=message):
        kind(logits, target)


def test_255_is_an_error_where_it_is_not_the_ignore_index():
    with pytest.raises(ValueError, match=r"target holds \[255\], expected labels 0..2 or ignore_index 0"):
        pat_loss(torch.zeros(1, 3, 1, 1), torch.full((1, 1, 1), 255), ignore_index=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(FocalLoss, gamma=-0.5), "gamma is -0.5, expected 0 or more"),
        (partial(PATLoss, beta="inverted"), "beta is 'inverted', expected 'exponential', 'inverse' or 'none'"),
        (partial(PATLoss, beta="inverse", epsilon=0), "epsilon is 0, expected more than 0"),
        (partial(PATLoss.as_written, epsilon=-0.1), "epsilon is -0.1, expected more than 0"),
        (partial(PATLoss, kappa=-1), "kappa is -1, expected 0 to 60"),
        (partial(PATLoss, kappa=61), "kappa is 61, expected 0 to 60: beyond, exp"),
        (partial(PATLoss, kappa=math.nan), "kappa is nan"),
        (partial(PATLoss, beta="inverse", kappa=5), "kappa is 5, but only beta='exponential' has it, and beta is "),
        (partial(PATLoss, beta="inverse", kappa="1e1"), "kappa is '1e1', but only beta='exponential' has it"),
        (partial(PATLoss, epsilon=0.5), "epsilon is 0.5, but only beta='inverse' has it, and beta is 'exponential'"),
        (partial(PATLoss, beta="none", epsilon=0.5), "epsilon is 0.5, but only beta='inverse' has it"),
        (partial(PATLoss, alpha=-1), "alpha is -1, expected 0 to 2, or None"),
        (partial(PATLoss, scale="log"), "scale is 'log', expected 'ce' or 'paper'"),
        (partial(PATLoss, temperature=0), "temperature is 0, expected more than 0"),
        (partial(PATLoss, temperature=-2), "temperature is -2, expected more than 0"),
        (partial(PATLoss, reduction="average"), "reduction is 'average', expected 'mean', 'sum' or 'none'"),
    ],
)
def test_bad_option_fails_when_the_loss_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- build_loss


@pytest.mark.parametrize(
    ("name", "options", "function"),
    [
        ("ce", {}, cross_entropy),
        ("focal", {"gamma": 5}, focal_loss),
        ("pat", {"beta": "exponential", "kappa": 3, "alpha": 0.25}, pat_loss),
    ],
)
def test_build_loss(name, options, function):
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    counts = {"class_pixels": torch.ones(3), "class_images": torch.ones(3)}  # none of these needs them
    assert build_loss(name, **counts, **options)(logits, target) == function(logits, target, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("focl", {}, r"unknown loss 'focl'\. Did you mean 'focal'\? There are: .*ce.*pat"),
        ("zzz", {}, r"unknown loss 'zzz'\. There are: .*ce.*pat"),
        ("focal", {"gama": 2}, r"unknown option of loss 'focal' 'gama'\. Did you mean 'gamma'\?"),
        ("ce", {"epsilon": 1}, r"unknown option of loss 'ce' 'epsilon'\. There are: ignore_index"),
        ("pat", {"temprature": 1}, "Did you mean 'temperature'"),
    ],
)
def test_build_loss_names_the_nearest(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_loss(name, **options)


# --- what a custom gradient can get wrong


@each_kind
def test_infinite_logits_count_only_where_there_is_a_label(kind):
    "A class that a model masks with -inf is the stand-in label of the ignored pixels; no true label is that class."
    kind = partial(pat_loss, scale="paper") if kind is pat_loss else kind  # "ce" depends on the number of classes
    logits, target = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.randint(1, 4, (2, 3, 3))
    target[:, 0] = 255
    masked = logits.clone()
    masked[:, 0] = -torch.inf
    value, gradient = value_and_grad(kind, masked, target)
    expected, expected_gradient = value_and_grad(kind, logits[:, 1:], torch.where(target == 255, 255, target - 1))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[:, 1:], expected_gradient)
    broken = torch.where((target == 255)[:, None], torch.nan, logits)
    torch.testing.assert_close(kind(broken, target), kind(logits, target))


@each_kind
def test_a_second_derivative_is_refused_not_dropped(kind):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = kind(logits, torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, logits, create_graph=True)


@each_kind
def test_a_graph_that_is_kept_gives_the_same_gradient_twice(kind):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = kind(logits, torch.zeros(1, 2, 2, dtype=torch.int64))
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("options", [{}, {"temperature": 2}, {"beta": "inverse"}, {"beta": "none"}])
def test_compiled_keeps_the_digits_of_logits_that_share_an_offset(options):
    logits, target = torch.randn(2, 5, 6, 7), torch.randint(5, (2, 6, 7))
    target[0, 0] = 255
    compiled = torch.compile(partial(pat_loss, **options), fullgraph=True, backend="aot_eager")
    offset = (1024 + logits) - 1024  # what float32 keeps of the logits beside 1024
    _, expected = value_and_grad(partial(pat_loss, **options), offset, target)
    torch.testing.assert_close(value_and_grad(compiled, 1024 + offset, target)[1], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("option", ["epsilon", "kappa", "alpha", "temperature"])
@pytest.mark.parametrize("value", ["1e-3", True, math.inf])
def test_what_is_no_number_is_named(option, value):
    beta = "inverse" if option == "epsilon" else "exponential"
    with pytest.raises(ValueError, match=f"{option} is {value!r}, expected"):
        PATLoss(beta=beta, **{option: value})


# --- what people hand over


@each_kind
@pytest.mark.parametrize(
    ("output", "line"),
    [
        ({"out": torch.zeros(1, 3, 2, 2), "aux": torch.zeros(1, 3, 2, 2)}, r"loss\(output\['out'\], target\)"),
        ({"loss": None, "logits": torch.zeros(1, 3, 2, 2)}, r"loss\(output\['logits'\], target\)"),
        ({"masks": torch.zeros(1, 3, 2, 2)}, r"loss\(output\['masks'\], target\)"),
        ((torch.zeros(1, 3, 2, 2), None), r"a tuple of 2: pass the tensor in it, loss\(output\[0\], target\)"),
        ([torch.zeros(1, 3, 2, 2)], r"loss\(output\[0\], target\)"),
        (np.zeros((1, 3, 2, 2)), "logits are a ndarray, expected a tensor"),
    ],
)
def test_an_output_that_is_no_tensor_says_the_line_to_write(kind, output, line):
    with pytest.raises(TypeError, match=line):
        kind(output, torch.zeros(1, 2, 2).long())


@each_kind
def test_a_target_that_is_no_tensor(kind):
    with pytest.raises(TypeError, match=r"target is a ndarray, expected a tensor: pass torch.as_tensor\(target\)"):
        kind(torch.zeros(1, 3, 2, 2), np.zeros((1, 2, 2)))


@each_kind
@pytest.mark.parametrize("size", [(), (24,), (4, 6), (2, 3, 4)])
def test_any_number_of_spatial_dimensions(kind, size):
    "The pixels of an image in another arrangement, and MONAI's channel of one: the same value and gradient."
    logits = torch.randn(2, 3, *size, dtype=torch.float64)
    target = torch.randint(3, (2, *size))
    value, gradient = value_and_grad(kind, logits, target)
    image = logits.reshape(2, 3, -1, 1), target.reshape(2, -1, 1)
    expected, expected_gradient = value_and_grad(kind, *image)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient.view_as(gradient))
    assert kind(logits, target[:, None]) == value


# --- the scale


@pytest.mark.parametrize("C", [2, 3, 11, 19, 150])
@pytest.mark.parametrize(
    "make",
    [
        lambda C: PATLoss(),
        lambda C: PATLoss(temperature=5),
        lambda C: PATLoss(beta="none"),
        lambda C: PATLoss(detach_beta=True, alpha=1),
        lambda C: PATLoss.as_written(),
        PATLoss.as_released,
    ],
)
def test_a_uniform_prediction_of_all_classes_costs_ln_C(make, C):
    target = torch.arange(C).repeat(2, 3, 1)  # masks of one size, so that their mean over pixels is that over masks
    assert make(C)(torch.full((2, C, 3, C), 7.0), target).item() == pytest.approx(math.log(C), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"beta": "inverse", "alpha": 1}, {"beta": "none"}, {"temperature": 3}])
def test_the_scale_is_one_constant(options):
    "The same ratio for every batch, in value and in each entry of the gradient."
    ratios = []
    for _ in range(3):
        logits, target = 3 * torch.randn(2, 5, 4, 4, dtype=torch.float64), torch.randint(5, (2, 4, 4))
        one = value_and_grad(partial(pat_loss, **options), logits, target)
        other = value_and_grad(partial(pat_loss, scale="paper", **options), logits, target)
        ratios += [(a / b).flatten() for a, b in zip(one, other, strict=True)]
    ratios = torch.cat([ratio.reshape(-1) for ratio in ratios])
    torch.testing.assert_close(ratios, torch.full_like(ratios, ratios[0].item()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("C", [3, 11, 80])
@pytest.mark.parametrize("temperature", [1, 2])
def test_as_released_is_the_released_loss_times_a_constant(C, temperature):
    kappa = min(C, 60)
    constant = C / (math.exp(kappa * (1 - 1 / C)) / 2)
    logits, target = torch.randn(2, C, 6, 6, dtype=torch.float64), torch.randint(C, (2, 6, 6))
    target[0, :2] = 255
    ours = value_and_grad(PATLoss.as_released(C, temperature=temperature), logits, target)
    theirs = value_and_grad(ReleasedPATLoss(temperature=temperature), logits, target)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, constant * other, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (PATLoss(), {"beta": "exponential", "kappa": None, "alpha": 0.5, "scale": "ce"}),
        (PATLoss.as_written(), {"beta": "inverse", "epsilon": 0.1, "alpha": 1, "scale": "ce"}),
        (PATLoss.as_written(epsilon=0.2, ignore_index=0), {"epsilon": 0.2, "alpha": 1, "ignore_index": 0}),
        (PATLoss.as_released(11), {"beta": "exponential", "kappa": 11, "alpha": None, "log_temperature": True}),
    ],
)
def test_presets_are_options(loss, expected):
    assert {name: loss.options[name] for name in expected} == expected


# --- everywhere


def test_a_subclass_may_set_attributes_after_the_constructor():
    class Smoothed(PATLoss):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(3, 3)

        def forward(self, logits, target):
            return super().forward(self.head(logits.movedim(1, -1)).movedim(-1, 1), target)

    assert Smoothed()(torch.randn(1, 3, 2, 2), torch.zeros(1, 2, 2).long()).isfinite()


@each_kind
def test_a_label_that_is_no_class_is_never_a_number_when_compiled(kind):
    logits, target = torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))
    target[0, 0] = 255
    torch._dynamo.reset()  # a call that raised, in an earlier test, keeps its functions from being compiled again
    compiled = torch.compile(kind, backend="aot_eager", fullgraph=True)
    assert value_and_grad(compiled, logits, target)[0].isfinite()
    for label in (-1, -100, 4, 254, 2**40):
        target[1, 0, 0] = label
        value, gradient = value_and_grad(compiled, logits, target)
        assert value.isnan() and gradient[1, :, 0, 0].isnan().all()
        with pytest.raises(ValueError, match=rf"target holds \[{label}\]"):
            check_labels(target, 4)


@each_kind
def test_labels_are_not_looked_at_on_an_accelerator(kind):
    "The meta device stands for one: whatever reads a value there raises."
    loss = kind(torch.zeros(2, 3, 4, 4, device="meta"), torch.zeros(2, 4, 4, dtype=torch.int64, device="meta"))
    assert loss.shape == () and loss.device.type == "meta"


@each_kind
def test_transforms_of_torch_func_are_refused_with_a_sentence(kind):
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    each = logits[:, None], target[:, None]
    for transform, batch in ((torch.func.grad, (logits, target)), (torch.func.vmap, each)):
        with pytest.raises(RuntimeError, match=r"do not work inside torch\.func transforms"):
            transform(kind)(*batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 2}, "temperature is 2, but beta is 'none'"),
        ({"temperature": 0.5, "detach_beta": True}, "temperature is 0.5, but beta is 'none'"),
        ({"detach_beta": True}, "detach_beta is set, but beta is 'none'"),
        ({"detach_beta": True, "log_temperature": True, "temperature": 2}, "detach_beta is set, but beta is 'none'"),
    ],
)
def test_options_of_a_coefficient_that_is_not_there_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PATLoss(beta="none", **options)
    PATLoss(beta="none", temperature=2, log_temperature=True)
    PATLoss(beta="none", temperature=1)
