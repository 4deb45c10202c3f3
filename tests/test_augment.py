"""Augmentation: what it does to a batch, that it repeats, and that it stays out of the way of everything else."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as vision
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from tqdm import tqdm

import pat.training as training
from pat.training import (
    augmented,
    build_trainer,
    draw_changes,
    epoch_generator,
    fit,
    resume,
    to_device,
    train,
    train_epoch,
    train_settings,
    without_nan,
)

ALL = {"flip": 0.5, "shift": 0.1, "scale": 0.2, "rotate": 20}
SMALL = {"epochs": 3, "batch_size": 4, "lr": 1e-2, "accelerator": "cpu", "threads": 1}


def make_settings(loss="ce", seed=0, loss_options=None, **options):
    return {
        "run": "tiny", "profile": "tiny", "dataset": "scenes", "seed": seed, "train": SMALL | options,
        "model": "segnet", "model_options": {"name": "segnet", "width": 4},
        "loss": loss, "loss_options": {"name": loss, **(loss_options or {})},
    }  # fmt: skip


def batch(scenes, n=6, memory_format=torch.contiguous_format):
    "Images and labels of `n` scenes, as the network gets them."
    rows = scenes.images[:n], scenes.labels[:n]
    return to_device([torch.from_numpy(np.array(part)) for part in rows], "cpu", memory_format)


# --- options


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"flips": 0.5}, r"unknown option of train\.augment 'flips'\. Did you mean 'flip'\? There are: flip, shift"),
        ({"flip": 0.5, "degrees": 10}, r"unknown option of train\.augment 'degrees'"),
        ({1: 0.5}, r"unknown option of train\.augment 1"),
        ({"flip": 1.5}, r"train\.augment\.flip is 1\.5, expected a number from 0 to 1$"),
        ({"flip": -0.1}, r"train\.augment\.flip is -0\.1, expected a number from 0 to 1"),
        ({"flip": True}, r"train\.augment\.flip is True, expected a number from 0 to 1"),
        ({"flip": None}, r"train\.augment\.flip is None, expected a number"),
        ({"shift": 5}, r"train\.augment\.shift is 5, expected a number from 0 to 0\.5"),
        ({"shift": [0.1, 0.1]}, r"train\.augment\.shift is \[0\.1, 0\.1\], expected a number"),
        ({"scale": 1}, r"train\.augment\.scale is 1, expected a number from 0 to 0\.9"),
        ({"rotate": 181}, r"train\.augment\.rotate is 181, expected a number from 0 to 180"),
        ({"rotate": "10"}, r"train\.augment\.rotate is '10', expected a number"),
        ({"rotate": math.nan}, r"train\.augment\.rotate is nan, expected a number"),
        ({"rotate": math.inf}, r"train\.augment\.rotate is inf, expected a number"),
        ({}, r"train\.augment is \{\}, which changes no image"),
        ({"flip": 0, "rotate": 0.0}, r"train\.augment is \{'flip': 0, 'rotate': 0\.0\}, which changes no image"),
        (True, r"train\.augment is True, expected options such as \{flip: 0\.5, rotate: 10\}, or null"),
        (False, r"train\.augment is False, expected options"),
        ("flip", r"train\.augment is 'flip', expected options"),
        (["flip"], r"train\.augment is \['flip'\], expected options"),
    ],
)
def test_an_augmentation_that_cannot_be(augment, message):
    with pytest.raises(ValueError, match=message):
        train_settings(SMALL | {"augment": augment})


@pytest.mark.parametrize("augment", [None, {"flip": 1}, {"flip": 0, "rotate": 180}, {"shift": 0.5}, {"scale": 0.9}])
def test_an_augmentation_that_can_be(augment):
    assert train_settings(SMALL | {"augment": augment}).augment == augment


# --- what is drawn


def test_draws_stay_within_their_bounds_and_reach_them():
    mirror, shift, factor, angle = draw_changes(ALL | {"flip": 0.2}, 20_000, epoch_generator(0, 0))
    assert (mirror < 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    for drawn, low, high in ((shift, -0.1, 0.1), (factor, 0.8, 1.2), (angle, -math.radians(20), math.radians(20))):
        width = high - low
        assert low <= drawn.min() < low + width / 100 and high - width / 100 < drawn.max() <= high
        assert drawn.mean().item() == pytest.approx((low + high) / 2, abs=width / 50)
        assert drawn.std().item() == pytest.approx(width / math.sqrt(12), rel=0.05)  # evenly spread
    together = torch.corrcoef(torch.stack([mirror, *shift.T, factor, angle]))
    assert (together - torch.eye(5)).abs().max() < 0.05


@pytest.mark.parametrize("name", list(ALL))
def test_an_option_does_not_change_the_draws_of_the_others(name):
    names, rest = ("flip", "shift", "scale", "rotate"), {k: v for k, v in ALL.items() if k != name}
    whole, without = (draw_changes(options, 50, epoch_generator(1, 2)) for options in (ALL, rest))
    for other, one, two in zip(names, whole, without, strict=True):
        assert torch.equal(one, two) == (other != name)


def test_epochs_and_seeds_have_draws_of_their_own():
    drawn = {tuple(torch.rand(3, generator=epoch_generator(s, e)).tolist()) for s in range(4) for e in range(4)}
    assert len(drawn) == 16
    assert torch.equal(torch.rand(3, generator=epoch_generator(3, 7)), torch.rand(3, generator=epoch_generator(3, 7)))


# --- what happens to a batch


@pytest.mark.parametrize("seed", range(4))
def test_the_same_as_torchvision_does_image_by_image(scenes, seed):
    images, target = batch(scenes)
    mirror, shift, factor, angle = draw_changes(ALL, 6, epoch_generator(seed, 0))
    changed, labels = augmented(images, target, ALL, 255, epoch_generator(seed, 0))
    H, W = target.shape[1:]
    for i in range(6):
        image, mask = tv_tensors.Image(images[i]), tv_tensors.Mask(target[i].to(torch.uint8))
        if mirror[i] < 0:
            image, mask = vision.horizontal_flip(image), vision.horizontal_flip(mask)
        x, y = (shift[i] * torch.tensor([W, H])).tolist()
        how = {"angle": math.degrees(angle[i]), "translate": [x, y], "scale": factor[i].item(), "shear": [0.0, 0.0]}
        expected = vision.affine(image, **how, interpolation=InterpolationMode.BILINEAR)
        assert (changed[i] - expected).abs().mean() < 1e-4
        assert (labels[i] != vision.affine(mask, **how, fill=255)).float().mean() < 0.005  # ties are rounded either way


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_labels_move_with_their_pixels(memory_format):
    "An image that is its own label map: wherever four neighbours are alike, image and label still agree."
    target = torch.randint(4, (8, 8, 12), generator=torch.Generator().manual_seed(0))
    target = target.repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = (target + 1.0).unsqueeze(1).repeat(1, 3, 1, 1).contiguous(memory_format=memory_format)
    changed, labels = augmented(images, target, ALL, 255, epoch_generator(0, 0))
    seen = torch.where(labels == 255, -1, labels) + 1.0
    agree = (changed[:, 0] - seen).abs() < 1e-3
    assert 0.7 < agree.float().mean() < 1
    assert {*labels.unique().tolist()} == {0, 1, 2, 3, 255}  # no label in between
    assert labels.dtype == torch.int64 and changed.dtype == torch.float32


@pytest.mark.parametrize("ignore_index", [255, 4, 0])
def test_outside_is_ignored_and_grey_and_what_was_ignored_stays_so(ignore_index):
    images, target = torch.ones(4, 3, 20, 30), torch.full((4, 20, 30), 7)
    target[:, :, 10:20] = ignore_index
    changed, labels = augmented(images, target, {"shift": 0.5}, ignore_index, epoch_generator(0, 0))
    assert {*labels.unique().tolist()} == {7, ignore_index}
    outside = changed[:, 0] == 0
    assert outside.flatten(1).any(1).all() and (labels[outside] == ignore_index).all()
    inside = (changed[:, 0] == 1) & (labels == ignore_index)
    assert inside.any()  # the strip that had no label


def test_mirrored_twice_is_as_before(scenes):
    images, target = batch(scenes)
    once = augmented(images, target, {"flip": 1}, 255, epoch_generator(0, 0))
    torch.testing.assert_close(once[0], images.flip(3), atol=1e-4, rtol=0)
    assert torch.equal(once[1], target.flip(2))
    assert torch.equal(augmented(*once, {"flip": 1}, 255, epoch_generator(0, 0))[1], target)


def test_every_image_of_a_batch_has_a_draw_of_its_own(scenes):
    images, target = (part[:1].expand(8, *part.shape[1:]) for part in batch(scenes, 1))
    changed, labels = augmented(images, target, ALL, 255, epoch_generator(0, 0))
    assert len({part.numpy().tobytes() for part in changed}) == len({part.numpy().tobytes() for part in labels}) == 8


# --- in a training


class Watch:
    "Keeps what `augmented` gave, call by call."

    def __init__(self, monkeypatch):
        self.seen = []
        monkeypatch.setattr(training, "augmented", self)

    def __call__(self, *args):
        images, target = augmented(*args)
        self.seen.append((images.numpy().tobytes(), target.numpy().tobytes()))
        return images, target


def test_off_changes_nothing_and_draws_nothing(scenes, tmp_path, monkeypatch):
    watch = Watch(monkeypatch)
    runs = [train(make_settings(**options), scenes, tmp_path / str(options)) for options in ({}, {"augment": None})]
    assert runs[0]["history"] == runs[1]["history"] and not watch.seen
    np.testing.assert_array_equal(runs[0]["counts"], runs[1]["counts"])


def test_training_images_change_in_every_epoch_and_others_never(scenes, tmp_path, monkeypatch):
    watch = Watch(monkeypatch)
    outcome = train(make_settings(augment=ALL), scenes, tmp_path, progress=False)
    assert len(watch.seen) == len(set(watch.seen)) == 3 * 4  # steps of training alone
    assert outcome["history"][-1]["loss"] < outcome["history"][0]["loss"]
    assert outcome["history"][0]["loss"] != train(make_settings(), scenes, tmp_path / "off")["history"][0]["loss"]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_gone_on_with_is_the_same(scenes, tmp_path, monkeypatch, workers):
    "The second epoch is broken off in the middle; the run goes on in another process, with or without workers."
    settings = make_settings(loss="blv", loss_options={"sigma": 4}, augment=ALL)
    watch = Watch(monkeypatch)
    whole = train(settings, scenes, tmp_path / "whole", progress=False)
    seen, watch.seen = watch.seen, []
    last, stopped = tmp_path / "last.ckpt", build_trainer(settings, scenes)
    step = training.train_step

    def two_epochs_and_a_half(trainer, batch):
        if len(watch.seen) == 10:
            raise KeyboardInterrupt
        return step(trainer, batch)

    monkeypatch.setattr(training, "train_step", two_epochs_and_a_half)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, last, progress=False)
    monkeypatch.setattr(training, "train_step", step)
    assert watch.seen == seen[:10]
    torch.rand(5)  # what else a process has drawn
    watch.seen = []
    went_on = build_trainer(settings, scenes)
    resume(went_on, last)
    went_on.batches = training.loader(scenes, "train", 4, went_on.order, workers)
    fit(went_on, last, progress=False)
    assert watch.seen == seen[8:] and without_nan(went_on.history) == without_nan(whole["history"])


@pytest.mark.parametrize("loss", [("blv", {"sigma": 4}), ("focal", {"gamma": 2})])
def test_a_loss_with_random_numbers_sees_the_same_images(scenes, tmp_path, monkeypatch, loss):
    watch, name, options = Watch(monkeypatch), *loss
    train(make_settings(augment=ALL), scenes, tmp_path / "ce", progress=False)
    seen, watch.seen = watch.seen, []
    train(make_settings(name, loss_options=options, augment=ALL), scenes, tmp_path / name, progress=False)
    assert watch.seen == seen


def test_augmentation_does_not_change_what_a_loss_draws(scenes, monkeypatch):
    "Nor the order of the images, nor anything else that torch's own generator decides."
    drawn = []
    for augment in (None, ALL):
        trainer = build_trainer(make_settings(augment=augment), scenes)
        train_epoch(trainer, tqdm(disable=True))
        drawn.append((torch.rand(3).tolist(), trainer.order.get_state().tolist()))
    assert drawn[0] == drawn[1]


def test_layout_of_the_images_stays(scenes):
    for channels_last in (True, False):
        trainer, formats = build_trainer(make_settings(augment=ALL, channels_last=channels_last), scenes), []
        model = trainer.model
        trainer.model = lambda images, model=model, formats=formats: formats.append(images.stride()) or model(images)
        training.train_step(trainer, next(iter(trainer.batches)))
        assert formats == [(32 * 48 * 3, 1, 48 * 3, 3) if channels_last else (3 * 32 * 48, 32 * 48, 48, 1)]
