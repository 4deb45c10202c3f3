"""PAT in the place of cross-entropy: the learning rate, the optimiser and the precision that somebody has already."""

from functools import partial

import pytest
import torch

from pat.losses import CrossEntropyLoss, PATLoss
from pat.models import build_model
from pat.training import loader, to_device

PRESETS = {
    "default": lambda classes: PATLoss(),
    "as written": lambda classes: PATLoss.as_written(),
    "as released": PATLoss.as_released,
    "mask size": lambda classes: PATLoss(beta="none"),
    "mask size, whole": lambda classes: PATLoss(beta="none", alpha=1),
    "temperature": lambda classes: PATLoss(temperature=5),
    "strong": lambda classes: PATLoss(kappa=5, alpha=0.75),
}


def batch(scenes, size=8):
    images, target = next(iter(loader(scenes, "train", size, torch.Generator().manual_seed(0))))
    return to_device((images, target), "cpu", torch.contiguous_format)


def gradient_norm(model, loss, images, target):
    grads = torch.autograd.grad(loss(model(images), target), list(model.parameters()))
    return torch.cat([grad.flatten() for grad in grads]).norm().item()


@pytest.mark.parametrize("network", ["segnet", "unet", "attunet", "unet++"])
def test_the_first_gradient_has_the_size_of_cross_entropys(network, scenes):
    model, (images, target) = build_model(network, scenes.classes, width=8), batch(scenes)
    norm = partial(gradient_norm, model, images=images, target=target)
    ratio = {name: norm(make(scenes.classes)) / norm(CrossEntropyLoss()) for name, make in PRESETS.items()}
    assert all(0.1 < value < 5 for value in ratio.values()), ratio
    assert norm(PATLoss(kappa=5, scale="paper")) / norm(CrossEntropyLoss()) > 50  # what the scale is for


def train(scenes, loss, steps=40, autocast=None):
    "SGD with momentum at 0.05, as for cross-entropy. Returns the mean recall of the classes, and the scaler's scale."
    model = build_model("segnet", scenes.classes, width=8, depths=[1, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=autocast is not None)
    images, target = batch(scenes, 16)
    for _ in range(steps):
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            value = loss(model(images), target)
        optimizer.zero_grad()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
    with torch.no_grad():
        right = model(images).argmax(1) == target
    hits = [right[target == c].float().mean().item() for c in range(scenes.classes) if (target == c).any()]
    return sum(hits) / len(hits), scaler.get_scale()


@pytest.fixture(scope="module")
def cross_entropys_recall(scenes):
    torch.manual_seed(0)
    return train(scenes, CrossEntropyLoss())[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_sgd_with_the_learning_rate_of_cross_entropy_learns_the_streets(preset, scenes, cross_entropys_recall):
    "The mean recall of the classes is no lower than that of cross-entropy after the same steps."
    ours, _ = train(scenes, PRESETS[preset](scenes.classes))
    assert ours > cross_entropys_recall - 0.02 and ours > 0.2, (ours, cross_entropys_recall)


@pytest.mark.parametrize("preset", ["default", "as written", "as released"])
def test_half_precision_with_a_scaled_gradient(preset, scenes):
    "The scaler of float16 begins at 65536. A loss a thousand times as large would drive it down to 1024."
    hit, scale = train(scenes, PRESETS[preset](scenes.classes), 30, torch.float16)
    assert scale >= 16384 and hit > 0.2, (hit, scale)


def test_adam_does_not_feel_the_scale(scenes):
    "It divides by the size of the gradient, so the constant only meets its epsilon."
    images, target = batch(scenes)
    weights = []
    for scale in ("ce", "paper"):
        torch.manual_seed(0)
        model = build_model("segnet", scenes.classes, width=4, depths=[1, 1]).double()
        optimizer, loss = torch.optim.Adam(model.parameters(), lr=0.005, eps=1e-15), PATLoss(kappa=5, scale=scale)
        for _ in range(10):
            optimizer.zero_grad()
            loss(model(images.double()), target).backward()
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-4)
