"""One run from its settings to its files: determinism, kills and resumes, scores, and every error."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning_fabric import Fabric
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import BatchSampler, RandomSampler
from tqdm import tqdm

import pat
from pat import training
from pat.baselines import build_loss
from pat.datasets import Prepared
from pat.metrics import frequency_groups, iou, nanmean
from pat.models import build_model
from pat.training import (
    begin_epoch,
    build_trainer,
    check_batch,
    check_params,
    checkpoint_state,
    confident,
    cost,
    differences,
    evaluate,
    fit,
    image_counts,
    load_trained,
    loader,
    logits_of,
    main,
    one_epoch,
    save_checkpoint,
    to_device,
    train,
    train_epoch,
    train_settings,
    without_nan,
    write_outcome,
)

SMALL = {"epochs": 3, "batch_size": 4, "lr": 1e-2, "accelerator": "cpu"}


def make_settings(model="segnet", loss="ce", seed=0, loss_options=None, **training):
    return {
        "run": f"tiny-{model}-{loss}", "profile": "tiny", "dataset": "scenes", "seed": seed, "train": SMALL | training,
        "model": model, "model_options": {"name": model, "width": 4},
        "loss": loss, "loss_options": {"name": loss, **(loss_options or {})},
    }  # fmt: skip


def assert_same(one, other):
    "All that a run finds out is the same, to the last bit; what it cost may differ."
    assert without_nan(one["history"]) == without_nan(other["history"])
    assert without_nan(one["result"]) == without_nan(other["result"])
    np.testing.assert_array_equal(one["counts"], other["counts"])


@pytest.fixture(scope="module")
def outcome(scenes, tmp_path_factory):
    "A run of three epochs, never interrupted."
    return train(make_settings(), scenes, tmp_path_factory.mktemp("run"), progress=False)


# --- settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, r"unknown option of train 'epoch'\. Did you mean 'epochs'\? There are: epochs, batch_size"),
        ({"select": "val_mio"}, r"unknown value of train.select 'val_mio'\. Did you mean 'val_miou'\?"),
        ({"precision": "16-mixed"}, r"unknown value of train.precision '16-mixed'\. Did you mean 'bf16-mixed'\?"),
        ({"epochs": 0}, "train.epochs is 0, expected a whole number of at least 1"),
        ({"batch_size": -4}, "train.batch_size is -4, expected a whole number of at least 1"),
        ({"batch_size": True}, "train.batch_size is True, expected a whole number of at least 1"),
        ({"lr": "1e-3"}, "train.lr is '1e-3', expected a number above 0"),  # what YAML makes of 1e-3
        ({"lr": None}, "train.lr is None, expected a number above 0"),
        ({"warmup": 0.6}, "train.warmup is 0.6, expected a share of the training, 0 to 0.5"),
    ],
)
def test_bad_setting(options, message):
    with pytest.raises(ValueError, match=message):
        train_settings(SMALL | options)


def test_missing_settings_are_all_named():
    with pytest.raises(ValueError, match=r"the section train has no batch_size$"):
        train_settings({"epochs": 3})


# --- batches and scores


def test_shuffled_batches_hold_every_training_image_once(scenes):
    generator = torch.Generator().manual_seed(3)
    epochs = [list(loader(scenes, "train", 6, generator)) for _ in range(2)]
    members = scenes.meta["splits"]["train"]
    for epoch in epochs:
        assert [len(images) for images, _ in epoch] == [6, 6, 4]
        rows = torch.cat([images.flatten(1) for images, _ in epoch]).tolist()
        assert sorted(rows) == sorted(scenes.images[members].reshape(16, -1).tolist())
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])


def test_image_and_label_stay_together(scenes):
    for images, labels in loader(scenes, "train", 4, torch.Generator().manual_seed(0)):
        for image, label in zip(images, labels, strict=True):
            (row,) = (i for i in range(20) if np.array_equal(scenes.images[i], image))
            np.testing.assert_array_equal(scenes.labels[row], label)


def tiny(train=1, val=1, test=1, height=32, width=48):
    "Prepared noise of two classes: that many images in each split."
    sizes, rng = {"train": train, "val": val, "test": test}, np.random.default_rng(0)
    ends = np.cumsum([0, *sizes.values()]).tolist()
    splits = {name: list(range(*part)) for name, part in zip(sizes, pairwise(ends), strict=True)}
    shape, counts = (ends[-1], height, width), {"class_pixels": [9, 1], "class_images": [train, 1]}
    meta = {"names": ["a", "b"], "ignore_index": 255, "source_sha256": "", "splits": splits}
    meta["statistics"] = {"train": counts}
    images, labels = (rng.integers(high, size=size, dtype=np.uint8) for high, size in ((256, (*shape, 3)), (2, shape)))
    return Prepared(images, labels, meta)


@pytest.mark.parametrize("batch_size", range(1, 8))
def test_only_an_image_that_is_left_over_alone_is_left_out(batch_size):
    "All else is the same, batch by batch: in the order that the generator gives, the last batch as large as it is."
    for n in range(1, 17):
        data = tiny(train=n, height=1, width=1)
        data.images[:n] = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)
        generator, twin = (torch.Generator().manual_seed(n) for _ in range(2))
        for _ in range(2):
            epoch = [images[:, 0, 0, 0].tolist() for images, _ in loader(data, "train", batch_size, generator)]
            whole = list(BatchSampler(RandomSampler(range(n), generator=twin), batch_size, drop_last=False))
            if batch_size > 1 and n > 1 and n % batch_size == 1:
                whole.pop()
            assert epoch == whole
        assert torch.equal(generator.get_state(), twin.get_state())


def test_every_image_has_its_turn_to_be_left_out():
    data, generator = tiny(train=5, height=1, width=1), torch.Generator().manual_seed(0)
    data.images[:5] = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    epochs = [{i for images, _ in loader(data, "train", 4, generator) for i in images[:, 0, 0, 0].tolist()}
              for _ in range(50)]  # fmt: skip
    assert {len(epoch) for epoch in epochs} == {4}
    assert set.union(*({*range(5)} - epoch for epoch in epochs)) == {*range(5)}


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_counts_a_single_left_over_image(split):
    data, model = tiny(val=5, test=5), build_model("unet", 2, width=2)
    matrices, _ = evaluate(model, data, split, 4)
    assert matrices.sum((1, 2)).tolist() == [32 * 48] * 5


POOLED = ["smp/DeepLabV3/resnet18", "smp/DeepLabV3Plus/resnet18", "smp/PAN/resnet18", "smp/UPerNet/resnet18"]
DEEP = {"name": "smp/Unet/resnet18"}  # its encoder makes 1 x 1 of 32 x 32 pixels


def alone(model, **training):
    return make_settings(**({"epochs": 1} | training)) | {"model": "mine", "model_options": model}


@pytest.mark.parametrize("model", [*({"name": name} for name in POOLED), DEEP])
def test_a_network_with_features_of_one_pixel_trains_where_one_image_is_left_over(tmp_path, model):
    outcome = train(alone(model), tiny(train=5, height=32, width=32), tmp_path, progress=False)
    assert math.isfinite(outcome["history"][0]["loss"])


@pytest.mark.parametrize("model", [{"name": POOLED[1]}, {"name": POOLED[2]}, DEEP])
@pytest.mark.parametrize(("batch_size", "images"), [(1, 3), (4, 1), (1, 1)])
def test_such_a_network_says_at_once_that_it_cannot_train_with_one_image(tmp_path, model, batch_size, images):
    said = f"model 'mine' cannot train with one image at a time, .*train.batch_size is {batch_size} for {images} "
    trainer = build_trainer(alone(model, batch_size=batch_size), tiny(train=images, height=32, width=32))
    with pytest.raises(ValueError, match=said):
        train_epoch(trainer, bar := tqdm(disable=True))
    assert bar.n == 0 and not trainer.optimizer.state  # no step was made
    with pytest.raises(ValueError, match=said):
        train(trainer.settings, trainer.data, tmp_path, progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize(("batch_size", "images"), [(1, 3), (4, 1)])
def test_other_networks_train_with_one_image_at_a_time(tmp_path, batch_size, images):
    settings = make_settings("unet", batch_size=batch_size)
    outcome = train(settings, tiny(train=images), tmp_path, progress=False)
    assert outcome["history"][2]["loss"] < outcome["history"][0]["loss"]


def test_the_schedule_counts_the_steps_that_are_made(tmp_path):
    trainer = build_trainer(make_settings(epochs=3), tiny(train=9))
    assert len(trainer.batches) == 2 and trainer.scheduler.T_max == 6
    fit(trainer, tmp_path / "last.ckpt", progress=False)
    assert trainer.scheduler.last_epoch == 6 and trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_other_errors_of_a_network_stay_as_they_are():
    trainer = build_trainer(make_settings(batch_size=1), tiny(train=2))

    def broken(images):
        raise ValueError("something else")

    trainer.model = broken
    with pytest.raises(ValueError, match=r"^something else$"):
        logits_of(trainer, torch.zeros(1, 3, 32, 48))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_to_device_scales_the_pixels(memory_format):
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 2, 2, 3)
    x, target = to_device((images, torch.full((1, 2, 2), 255, dtype=torch.uint8)), torch.device("cpu"), memory_format)
    assert x.shape == (1, 3, 2, 2) and x.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([-1, 51 / 127.5 - 1, 1]))
    assert target.dtype == torch.int64 and (target == 255).all()


def test_evaluation_does_not_depend_on_the_batch_size(scenes):
    labels = np.array(scenes.labels)
    labels[scenes.meta["splits"]["val"][0], :20] = 255  # the two images have unlike numbers of labelled pixels
    data, model = replace(scenes, labels=labels), build_model("unet", 10, width=2)
    (one, scores), (two, other) = (evaluate(model, data, "val", size) for size in (1, 2))
    np.testing.assert_array_equal(one, two)
    assert one.sum((1, 2)).tolist() == [12 * 48, 32 * 48]
    assert scores["ce"] == pytest.approx(other["ce"], rel=1e-6)
    assert not model.training
    # as released: the mean over batches of the mean over the batch's labelled classes
    assert scores["miou_released"] == pytest.approx(np.mean([nanmean(iou(m)[m.sum(1) > 0]) for m in one]))


def test_cross_entropy_of_the_evaluation_is_that_of_the_pixels(scenes):
    model = build_model("unet", 10, width=2)
    _, scores = evaluate(model, scenes, "test", 1)
    members, total = scenes.meta["splits"]["test"], 0.0
    for row in members:
        image = torch.from_numpy(scenes.images[row : row + 1].transpose(0, 3, 1, 2).copy()) / 127.5 - 1
        log_p = model(image).log_softmax(1)[0].detach().numpy()
        total -= np.take_along_axis(log_p, scenes.labels[row][None].astype(int), 0).mean()
    assert scores["ce"] == pytest.approx(total / len(members), rel=1e-4)


def test_image_counts_are_hits_labels_and_predictions():
    matrix = np.array([[[5, 1], [2, 3]], [[0, 0], [4, 0]]])
    expected = [[[5, 6, 7], [3, 5, 4]], [[0, 0, 4], [0, 4, 0]]]
    assert image_counts(matrix).tolist() == expected


# --- runs


def test_outcome_hangs_together(outcome, scenes):
    history, result, counts = outcome["history"], outcome["result"], outcome["counts"]
    assert [row["epoch"] for row in history] == [0, 1, 2]
    assert history[-1]["loss"] < history[0]["loss"]
    assert result["best_epoch"] == min(history, key=lambda row: row["val_ce"])
    assert counts.shape == (2, 10, 3)
    hit, labelled, predicted = counts.sum(0).T
    for c, (name, value) in enumerate(result["test"]["iou"].items()):
        union = labelled[c] + predicted[c] - hit[c]
        assert value == pytest.approx(hit[c] / union if union else math.nan, nan_ok=True), name
    labels = scenes.labels[scenes.meta["splits"]["test"]]
    assert labelled.tolist() == [(labels == c).sum() for c in range(10)]
    assert outcome["cost"]["device"] == "cpu" and outcome["cost"]["seconds_per_epoch"] > 0


def test_same_seed_same_run(outcome, scenes, tmp_path):
    torch.rand(7)  # what was drawn before does not matter
    assert_same(train(make_settings(), scenes, tmp_path, progress=False), outcome)


def test_other_seed_other_run(outcome, scenes, tmp_path):
    other = train(make_settings(seed=1), scenes, tmp_path, progress=False)
    assert all(a["loss"] != b["loss"] for a, b in zip(other["history"], outcome["history"], strict=True))


def test_a_loss_with_a_schedule_hears_how_far_the_training_is(scenes, tmp_path):
    "LDAM's deferred weights join in after the first of two epochs, and not before."
    never, late = (
        train(make_settings(loss="ldam", loss_options={"scale": 1.0, "drw": drw}, epochs=2), scenes, tmp_path / name)
        for name, drw in (("never", None), ("late", 0.5))
    )
    assert never["history"][0] == late["history"][0]
    assert never["history"][1]["loss"] != late["history"][1]["loss"]


@pytest.mark.parametrize(
    ("model", "loss", "options"),
    [("unet", "focal", {"gamma": 2}), ("segnet", "pat", {"beta": "exponential", "kappa": 3, "alpha": 0.25})],
)
def test_other_losses_train_and_are_not_cross_entropy(scenes, tmp_path, model, loss, options):
    runs = [
        train(make_settings(model, name, loss_options=o, epochs=1), scenes, tmp_path / name, progress=False)
        for name, o in (("ce", {}), (loss, options))
    ]
    assert runs[0]["history"][0]["val_ce"] != runs[1]["history"][0]["val_ce"]
    assert all(math.isfinite(run["history"][0]["loss"]) for run in runs)


def test_post_hoc_adjustment_trains_with_cross_entropy_and_scores_otherwise(outcome, scenes, tmp_path):
    plain = train(make_settings(loss="post-hoc", loss_options={"tau": 0}), scenes, tmp_path / "plain", progress=False)
    assert plain["history"] == outcome["history"] and np.array_equal(plain["counts"], outcome["counts"])
    settings = make_settings(loss="post-hoc", loss_options={"tau": 0.5})
    adjusted = train(settings, scenes, tmp_path / "adjusted", progress=False)
    assert [row["loss"] for row in adjusted["history"]] == [row["loss"] for row in outcome["history"]]
    assert adjusted["history"][0]["val_ce"] != outcome["history"][0]["val_ce"]

    # by hand: the weights that were kept, and the prior of the training split taken from their logits
    best = torch.load(tmp_path / "adjusted" / "best.ckpt", weights_only=True)
    inside = {k.removeprefix("network."): v for k, v in best["model"].items() if k != "shift"}
    network = build_model(classes=scenes.classes, **settings["model_options"])
    network.load_state_dict(inside)
    images, target = to_device([torch.tensor(scenes.images), torch.tensor(scenes.labels)], "cpu")
    members = scenes.meta["splits"]["test"]
    pixels = torch.tensor(scenes.meta["statistics"]["train"]["class_pixels"]).double().clamp(min=1)
    with torch.no_grad():
        logits = network.eval()(images[members]) - 0.5 * (pixels / pixels.sum()).log()[:, None, None]
    hit = (logits.argmax(1) == target[members]).sum((1, 2))  # every pixel of the scenes is labelled
    assert adjusted["counts"][..., 0].sum(1).tolist() == hit.tolist()
    again = load_trained(tmp_path / "adjusted" / "best.ckpt", settings, scenes.classes, "train it")
    with torch.no_grad():
        assert torch.allclose(again(images[members]).double(), logits, atol=1e-5)


def test_shares_of_confident_pixels_by_hand(scenes):
    "A network that says the true class with p = 0.6 at half of the pixels, and with p = 0.95 at the others."
    trainer = build_trainer(make_settings(), scenes)
    target = torch.tensor(scenes.labels[scenes.meta["splits"]["val"]]).long()

    class Known(torch.nn.Module):
        def forward(self, images):
            p = torch.full(target.shape, 0.6)
            p[:, ::2] = 0.95
            others = (1 - p).div(9).log()[:, None].expand(-1, 10, -1, -1)
            return others.scatter(1, target[:, None], p.log()[:, None])

    trainer.model = Known()
    trainer.cfg.batch_size = len(target)  # one batch, as the network above knows
    found = confident(trainer)
    assert target.shape[1] % 2 == 0 and found["pixels"] == pytest.approx([1, 0.5, 0])
    # cross-entropy pulls with 2 (1 - p): 0.8 and 0.1
    assert found["gradient"] == pytest.approx([1, 0.1 / 0.9, 0], rel=1e-4)
    trainer.loss_fn = build_loss("focal", gamma=2)
    slope = lambda p: (1 - p) ** 2 - 2 * p * (1 - p) * math.log(p)  # of focal loss, over that of cross-entropy's -log p
    weak, strong = (0.05 * slope(0.95), 0.4 * slope(0.6))
    assert confident(trainer)["gradient"][1] == pytest.approx(weak / (weak + strong), rel=1e-4)


def test_every_epoch_is_scored_in_the_tail_and_in_the_head(outcome, scenes):
    scores = ["miou", "miou_tail", "miou_head", "pixel_accuracy", "ce", "miou_released"]
    assert list(outcome["history"][0]) == ["epoch", "loss", *(f"val_{score}" for score in scores)]
    row, labels = outcome["history"][-1], scenes.labels[scenes.meta["splits"]["val"]]
    tail = frequency_groups(scenes.meta["statistics"]["train"]["class_pixels"])["tail"]
    assert math.isnan(row["val_miou_tail"]) == (not np.isin(labels, tail).any())
    assert 0 <= row["val_miou"] <= row["val_miou_head"] <= 1


def test_mixed_precision_runs_and_stays_close(outcome, scenes, tmp_path):
    "bfloat16 has 8 bits of mantissa; the first epoch of a run has little time to drift apart."
    mixed = train(make_settings(precision="bf16-mixed"), scenes, tmp_path, progress=False)
    assert mixed["history"] != outcome["history"]
    assert mixed["history"][0]["loss"] == pytest.approx(outcome["history"][0]["loss"], rel=0.05)
    weights = torch.load(tmp_path / "best.ckpt", weights_only=False)["model"]
    assert {v.dtype for k, v in weights.items() if k.endswith("weight")} == {torch.float32}


def test_learning_rate_is_annealed_to_zero(scenes, tmp_path):
    trainer = build_trainer(make_settings(epochs=2), scenes)
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-2
    fit(trainer, tmp_path / "last.ckpt", progress=False)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_learning_rate_rises_first(scenes, tmp_path):
    steps = 2 * len(build_trainer(make_settings(epochs=2), scenes).batches)
    trainer = build_trainer(make_settings(epochs=2, warmup=0.5), scenes)
    rising = steps // 2
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / (rising + 1))
    train_epoch(trainer, tqdm(disable=True))
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2)
    train_epoch(trainer, tqdm(disable=True))
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_a_run_that_warms_up_goes_on_where_it_was(scenes, tmp_path):
    settings = make_settings(epochs=2, warmup=0.5)
    whole = train(settings, scenes, tmp_path / "whole", progress=False)
    trainer = build_trainer(settings, scenes)
    begin_epoch(trainer, 0)
    one_epoch(trainer, tqdm(disable=True))
    (tmp_path / "parts").mkdir()
    save_checkpoint(trainer.fabric, tmp_path / "parts" / "last.ckpt", checkpoint_state(trainer))
    assert_same(train(settings, scenes, tmp_path / "parts", progress=False), whole)


@pytest.mark.parametrize(("select", "best"), [("val_ce", 1), ("val_miou", 2)])
def test_selected_epoch_and_its_weights_are_kept(scenes, tmp_path, monkeypatch, select, best):
    "Staged scores: cross-entropy is best after epoch 1, mIoU after epoch 2, and epoch 3 equals their best."
    staged, weights = iter([(1.0, 0.5), (0.5, 0.2), (0.7, 0.9), (0.5, 0.9)]), []

    def fake(model, data, split, batch_size, *processes):
        if split == "test":
            return evaluate(model, data, split, batch_size, *processes)
        weights.append({k: v.clone() for k, v in model.state_dict().items()})
        ce, hits = next(staged)
        matrix = np.zeros((1, 10, 10))
        matrix[0, 0, 0], matrix[0, 0, 1] = 10 * hits, 10 * (1 - hits)
        return matrix, {"ce": ce, "miou_released": 0.0}

    monkeypatch.setattr("pat.training.evaluate", fake)
    outcome = train(make_settings(epochs=4, select=select), scenes, tmp_path, progress=False)
    assert outcome["result"]["best_epoch"]["epoch"] == best
    stored = torch.load(tmp_path / "best.ckpt", weights_only=False)
    assert stored["epoch"] == best and stored["settings"] == outcome["result"]["settings"]
    assert all(torch.equal(stored["model"][k], v) for k, v in weights[best].items())
    # and the test scores are those of these weights
    model = build_model("segnet", 10, width=4)
    model.load_state_dict(stored["model"])
    matrices, _ = evaluate(model.to(memory_format=torch.channels_last), scenes, "test", 4)
    np.testing.assert_array_equal(image_counts(matrices), outcome["counts"])


def test_non_finite_loss_says_what_to_do_and_keeps_the_last_good_epoch(scenes, tmp_path, monkeypatch):

    def spoil_the_second(trainer, bar):
        if trainer.history:
            torch.nn.init.constant_(next(trainer.model.parameters()), math.nan)
        return train_epoch(trainer, bar)

    monkeypatch.setattr("pat.training.train_epoch", spoil_the_second)
    message = r"run 'tiny-segnet-ce', epoch 2, step 1 of 4: the loss became nan: lower train\.lr, or soften the "
    with pytest.raises(FloatingPointError, match=message):
        train(make_settings(), scenes, tmp_path, progress=False)
    assert len(torch.load(tmp_path / "last.ckpt", weights_only=False)["history"]) == 1


def test_a_learning_rate_out_of_bounds_is_noticed(scenes, tmp_path):
    with pytest.raises(FloatingPointError, match=r"lower train\.lr"):
        train(make_settings(lr=1e30), scenes, tmp_path, progress=False)
    assert sorted(file.name for file in tmp_path.iterdir() if file.name != "lock") == []


# --- other machines


class LikeMPS(TorchDispatchMode):
    "Raises where an operation makes a float64 tensor, which Apple's devices do not have."

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.dtype == torch.float64:
                raise TypeError(f"{func} makes a float64 tensor")
        return out


def test_no_float64_on_the_device(outcome, scenes, tmp_path):
    with pytest.raises(TypeError, match="makes a float64 tensor"), LikeMPS():
        torch.ones(2).double()
    with LikeMPS():
        assert_same(train(make_settings(), scenes, tmp_path, progress=False), outcome)


def test_a_system_that_does_not_know_the_peak_of_the_memory(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows, where importing it fails
    spent = cost(torch.device("cpu"), [1.0], [training.peak_memory(torch.device("cpu"))])
    assert spent["peak_memory_mib"] is None
    json.dumps(spent, allow_nan=False)


# --- interruptions

SCRIPT = """
import json, sys, time
import pat.training as training
from pat.datasets import load_prepared

evaluate = training.evaluate
def slowly(*args):  # time enough to be killed in the middle of a run
    time.sleep(0.5)
    return evaluate(*args)

training.evaluate = slowly
training.train(json.loads(sys.argv[1]), load_prepared(sys.argv[2]), sys.argv[3], progress=False)
"""


@pytest.fixture(scope="module")
def killed(scenes, prepared_folder, tmp_path_factory):
    "Folder of a run that was killed with SIGKILL in its second epoch or later; and what a second process was told."
    folder = tmp_path_factory.mktemp("killed")
    paths = [str(Path(pat.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", SCRIPT, json.dumps(make_settings()), str(prepared_folder), str(folder)]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (folder / "last.ckpt").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "no checkpoint after two minutes"
            time.sleep(0.01)
        try:
            train(make_settings(), scenes, folder, progress=False)
            refusal = None
        except RuntimeError as error:
            refusal = str(error)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    return folder, refusal


@pytest.mark.slow
def test_second_process_is_refused(killed):
    folder, refusal = killed
    assert refusal == f"another process trains run 'tiny-segnet-ce': {folder}/lock is held"


@pytest.mark.slow
def test_killed_run_ends_as_if_nothing_had_happened(killed, outcome, scenes, monkeypatch):
    folder, _ = killed
    done = len(torch.load(folder / "last.ckpt", weights_only=False)["history"])
    assert 1 <= done < 3
    epochs = []
    monkeypatch.setattr("pat.training.train_epoch", lambda *args: epochs.append(1) or train_epoch(*args))
    assert_same(train(make_settings(), scenes, folder, progress=False), outcome)
    assert len(epochs) == 3 - done  # the epochs before the kill were not repeated
    assert sorted(file.name for file in folder.iterdir() if file.name != "lock") == ["best.ckpt"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("lr", r"train\.lr is 0\.01 instead of 0\.002"),
        ("former loss", r"loss_options\.epsilon is 0\.1 instead of nothing"),
        ("data", "the data are others"),
        ("split", "the data are others"),
        ("meaning of the labels", "the data are others"),
    ],
)
def test_checkpoint_of_something_else_is_not_gone_on_with(scenes, tmp_path, capsys, change, said):
    trainer = build_trainer(make_settings(epochs=2), scenes)
    if change == "former loss":
        trainer.settings["loss_options"] = {"name": "ce", "epsilon": 0.1}
    fit(trainer, tmp_path / "last.ckpt", progress=False)
    assert (tmp_path / "last.ckpt").exists()
    settings, data = make_settings(epochs=2), scenes
    if change == "lr":
        settings = make_settings(epochs=2, lr=2e-3)
    elif change == "split":
        splits = scenes.meta["splits"]
        data = replace(scenes, meta=scenes.meta | {"splits": splits | {"train": splits["train"][:-4]}})
    elif change == "meaning of the labels":  # the same files, read in another way
        swapped = scenes.labels.copy()
        swapped[scenes.labels == 0], swapped[scenes.labels == 1] = 1, 0
        statistics = {}
        for split, counted in scenes.meta["statistics"].items():
            first, second, *rest = counted["class_pixels"]
            statistics[split] = counted | {"class_pixels": [second, first, *rest]}
        data = replace(scenes, labels=swapped, meta=scenes.meta | {"statistics": statistics})
    elif change == "data":
        data = replace(scenes, images=255 - scenes.images, meta=scenes.meta | {"source_sha256": "other"})
    fresh = train(settings, data, tmp_path / "fresh", progress=False)
    assert capsys.readouterr().out == ""
    assert_same(train(settings, data, tmp_path, progress=False), fresh)
    line = rf"{re.escape(str(tmp_path))}/last.ckpt belongs to another training \({said}\): this one starts anew\n"
    assert re.fullmatch(line, capsys.readouterr().out)


class Hostile:
    "Creates a file when it is unpickled."

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"last\.ckpt cannot be read \(\w+\): it is no checkpoint of this program"),
        (b"half a file", r"last\.ckpt cannot be read \(\w+\): it is no checkpoint"),
        ("cut", r"last\.ckpt cannot be read \(\w+\): it is no checkpoint"),
        ("hostile", r"last\.ckpt cannot be read \(UnpicklingError\)"),
        ({"model": {}}, r"last\.ckpt does not say what it belongs to, it has no 'identity'"),
        (torch.zeros(2), r"last\.ckpt does not say what it belongs to"),
        ("without optimizer", r".*optimizer.*"),
        ("other weights", r".*\n\s*Missing key"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_set_aside_and_the_run_starts_anew(
    outcome, scenes, tmp_path, capsys, content, message
):
    file, evil = tmp_path / "last.ckpt", tmp_path / "evil"
    fit(build_trainer(make_settings(), scenes), file, progress=False)
    whole = torch.load(file, weights_only=True)
    if content == "cut":
        content = file.read_bytes()[:-1000]
    elif content == "hostile":
        content = {"identity": Hostile(evil)}
    elif content == "without optimizer":
        content = {key: value for key, value in whole.items() if key != "optimizer"}
    elif content == "other weights":
        content = whole | {"model": {"weight": torch.zeros(3)}}
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    assert_same(train(make_settings(), scenes, tmp_path, progress=False), outcome)
    told = capsys.readouterr().out
    assert re.match(message if message.startswith(".*") else f"{re.escape(str(tmp_path))}/{message}", told)
    assert told.endswith(f"It is {tmp_path}/last.broken now, and the run starts anew\n")
    assert (tmp_path / "last.broken").exists() and not evil.exists()


def test_differences_are_named_key_by_key():
    one, other = make_settings(seed=1), make_settings(model="unet", lr=1)
    assert differences(one, other) == [
        "run is 'tiny-segnet-ce' instead of 'tiny-unet-ce'", "seed is 1 instead of 0", "train.lr is 0.01 instead of 1",
        "model is 'segnet' instead of 'unet'", "model_options.name is 'segnet' instead of 'unet'",
    ]  # fmt: skip
    unlike = differences({"a": {"b": 1}}, {"a": 1, "c": None})
    assert unlike == ["a is {'b': 1} instead of 1", "c is nothing instead of None"]


def test_run_killed_before_its_test_is_only_tested(outcome, scenes, tmp_path, monkeypatch):
    fit(build_trainer(make_settings(), scenes), tmp_path / "last.ckpt", progress=False)
    monkeypatch.setattr("pat.training.train_epoch", lambda *_: pytest.fail("trained again"))
    assert_same(train(make_settings(), scenes, tmp_path, progress=False), outcome)


def test_run_killed_before_its_first_progress_ends_as_well(outcome, scenes, tmp_path):
    fit(build_trainer(make_settings(), scenes), tmp_path / "last.ckpt", progress=False)
    (tmp_path / "progress.json").unlink()
    assert_same(train(make_settings(), scenes, tmp_path, progress=False), outcome)
    assert not (tmp_path / "last.ckpt").exists()


def test_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    class FullDisk:
        is_global_zero = True

        def save(self, path, state):
            Path(path).write_bytes(b"half")
            raise OSError("No space left on device")

    path = tmp_path / "last.ckpt"
    save_checkpoint(Fabric(accelerator="cpu"), path, {"epoch": 1})
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(FullDisk(), path, {"epoch": 2})
    assert torch.load(path, weights_only=False) == {"epoch": 1}


# --- files of a run


def test_written_files_hold_the_outcome(outcome, tmp_path):
    write_outcome(outcome, tmp_path, smoke=True)
    run = "tiny-segnet-ce"
    files = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file())
    kinds = [f"costs/{run}.json", *(f"runs/{run}.{kind}" for kind in ("csv", "json", "npz")), f"scores/{run}.json"]
    assert files == kinds
    written = json.loads((tmp_path / "runs" / f"{run}.json").read_text())
    assert written == {"smoke": True, **without_nan(outcome["result"])}
    assert json.loads((tmp_path / "costs" / f"{run}.json").read_text()) == outcome["cost"]
    scores = json.loads((tmp_path / "scores" / f"{run}.json").read_text())
    assert len(scores) == 5 and all(written["test"][key] == score for key, score in scores.items())
    history = pd.read_csv(tmp_path / "runs" / f"{run}.csv")
    pd.testing.assert_frame_equal(history, pd.DataFrame(outcome["history"]), rtol=1e-12)
    with np.load(tmp_path / "runs" / f"{run}.npz") as arrays:
        np.testing.assert_array_equal(arrays["counts"], outcome["counts"])


def test_absent_class_is_null_in_the_file(outcome, tmp_path):
    "Of ten classes some are in no test image of a set this small."
    absent = [name for name, value in outcome["result"]["test"]["iou"].items() if math.isnan(value)]
    assert absent
    write_outcome(outcome, tmp_path)
    text = (tmp_path / "runs" / "tiny-segnet-ce.json").read_text()
    written = json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    assert [name for name, value in written["test"]["iou"].items() if value is None] == absent
    assert written["smoke"] is False


def test_json_comes_last(outcome, tmp_path):
    "Where the costs cannot be written, the run's JSON is not there either, and no temporary file is."
    broken = outcome | {"cost": outcome["cost"] | {"seconds_per_epoch": math.inf}}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_outcome(broken, tmp_path)
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.tmp*"))


def test_without_nan_reaches_every_depth():
    value = {"a": math.nan, "b": [1.5, math.nan, {"c": math.nan, "d": "nan"}], "e": 0}
    assert without_nan(value) == {"a": None, "b": [1.5, None, {"c": None, "d": "nan"}], "e": 0}


# --- check_params

GOOD = {
    "profile": "sample",
    "root": ".",
    "params_file": "params.yaml",
    "datasets": {"scenes": {"format": "folder", "path": "data/scenes", "height": 32, "width": 48, "split": "paper"}},
    "models": {"segnet": {"name": "segnet"}, "unet": {"name": "unet", "levels": 3, "width": 4}},
    "train": {"epochs": 1, "batch_size": 4},
    "losses": {"ce": {"name": "ce"}, "soft": {"name": "pat", "beta": "exponential"}},
    "runs": {"scenes-unet-ce": {"dataset": "scenes", "model": "unet", "loss": "ce", "seed": 0}},
    "tables": {"table1": {"models": ["unet"], "losses": ["ce"]}},
    "seeds": [0],
    "tune": {},
    "trials": {},
}


def params_file(tmp_path, section="profile", value="sample"):
    file = tmp_path / "params.yaml"
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    file.write_text(yaml.safe_dump(GOOD | {section: value}))
    return file


ONE = GOOD["runs"]["scenes-unet-ce"]


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        (
            "datasets",
            {"scenes": GOOD["datasets"]["scenes"] | {"format": "foldr"}},
            r"unknown format of dataset 'scenes' in .*params\.yaml 'foldr'\. Did you mean 'folder'\? There are: folder",
        ),
        (
            "datasets",
            {"scenes": {"format": "folder", "heigth": 3}},
            r"unknown option of dataset 'scenes' in .*params\.yaml 'heigth'\. Did you mean 'height'\?",
        ),
        ("train", {"epochs": 1, "batch": 4}, r"unknown option of train 'batch'\. Did you mean 'batch_size'\?"),
        (
            "runs",
            {"one": ONE | {"model": "u-net"}},
            r"unknown model of run 'one' in .*params\.yaml 'u-net'\. Did you mean 'unet'\?",
        ),
        (
            "models",
            {"unet": {"name": "unte"}},
            r"model 'unet' in .*params\.yaml: unknown model 'unte'\. Did you mean 'unet'\? There are: segnet, unet",
        ),
        (
            "models",
            {"unet": {"name": "segnet", "depth": [1, 1]}},
            r"model 'unet' in .*params\.yaml: unknown option of model 'segnet' 'depth'\. Did you mean 'depths'\?",
        ),
        ("models", {"unet": {"width": 8}}, r"model 'unet' in .* has no name, expected the kind of the model"),
        ("models", {"unet": {"name": "unet", "width": 0}}, r"model 'unet' in .*: width is 0, expected a whole number"),
        ("models", {"unet": {"name": "segnet", "depths": [2, 0]}}, r"an entry of depths is 0, expected a whole number"),
        ("models", {"unet": {"name": "segnet", "depths": 2}}, r"model 'unet' in .*params\.yaml: depths is 2"),
        ("runs", {"one": ONE | {"loss": "sof"}}, r"unknown loss of run 'one' .* 'sof'\. Did you mean 'soft'\?"),
        ("runs", {"one": ONE | {"dataset": "scene"}}, r"unknown dataset of run 'one' .* Did you mean 'scenes'\?"),
        ("runs", {"one": {"dataset": "scenes", "model": "unet", "loss": "ce"}}, "run 'one' of params.yaml has no seed"),
        (
            "runs",
            {"one": ONE | {"loss": "soft", "kapa": 1}},
            r"unknown key of run 'one' in .*params\.yaml 'kapa'",
        ),
        (
            "losses",
            {"ce": {"name": "crossentropy"}},
            r"loss 'ce' in .*params\.yaml: unknown loss 'crossentropy'\.",
        ),
        (
            "losses",
            {"ce": {"name": "pat", "beta": "inverse", "epsilon": 0}},
            r"loss 'ce' in .*params\.yaml: epsilon is 0, expected more than 0",
        ),
        ("runs", {"one.two": ONE}, r"runs of .*params\.yaml has the name 'one\.two', expected letters"),
        ("runs", {1: ONE}, r"runs of .*params\.yaml has the name 1, expected letters"),
        ("runs", None, r"runs of .*params\.yaml is None, expected `name: \{key: value\}` entries"),
        ("runs", {"scenes-unet-ce": ONE | {"seed": 1}}, r"are not those of its tables: `python -m pat\.params "),
        ("seeds", ["x"], r"an entry of seeds of .*params\.yaml is 'x', expected a whole number"),
        ("datasets", {"scenes": {"format": "folder"}}, r"no height, path, split, width of dataset 'scenes' in"),
        (
            "datasets",
            {"scenes": GOOD["datasets"]["scenes"] | {"split": "offcial"}},
            r"unknown split of dataset 'scenes' .* Did you mean 'official'\?",
        ),
        (
            "datasets",
            {"scenes": GOOD["datasets"]["scenes"] | {"width": 0}},
            r"width of dataset 'scenes' in .* is 0, expected a whole number of at least 1",
        ),
        ("train", GOOD["train"] | {"epochs": 1.5}, r"train\.epochs is 1\.5, expected a whole number of at least 1"),
        ("train", GOOD["train"] | {"lr": float("nan")}, r"train\.lr is nan, expected a number above 0"),
        ("train", GOOD["train"] | {"workers": -1}, r"train\.workers is -1, expected a whole number of at least 0"),
        ("losses", {"ce": {"gamma": 2}}, r"loss 'ce' in .*params\.yaml has no name, expected the kind of the loss"),
        ("losses", {"ce": {"name": "focal", "gamma": "two"}}, r"loss 'ce' in .*params\.yaml: gamma is 'two'"),
        ("losses", {"ce": {"name": "pat", "alpha": 50}}, r"loss 'ce' in .*params\.yaml: alpha is 50, expected 0 to 2"),
        (
            "losses",
            {"ce": {"name": "pat", "reduction": "none"}},
            r"loss 'ce' in .*params\.yaml gives a map of shape \(1, 1, 1\), expected a scalar",
        ),
        (
            "tables",
            {"table1": {"models": ["unet"], "losses": ["sof"]}},
            r"unknown entry of losses of table 'table1' .* Did you mean 'soft'\?",
        ),
        ("tables", {"table1": {"losses": ["ce"]}}, r"models of table 'table1' in .* is None, expected a list"),
        ("losess", {}, r"unknown section of .*params\.yaml 'losess'\. Did you mean 'losses'\?"),
    ],
)
def test_params_that_cannot_be(tmp_path, section, value, message):
    file = params_file(tmp_path, section, value)
    with pytest.raises(ValueError, match=message):
        check_params(file)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main([str(file)])


@pytest.mark.parametrize(
    ("model", "batch_size", "said"),
    [
        ({"name": POOLED[0]}, 1, "1 images at a time: Expected more than 1 value .* train.batch_size of 2 or more"),
        ({"name": "unet", "in_channels": 1}, 4, "4 images at a time: .* 3 channels"),
        ({"name": "smp/Unet/tu-swin_tiny_patch4_window7_224", "img_size": [64, 64]}, 4, r".*\(64\)"),
    ],
)
def test_a_model_that_cannot_train_with_the_images_is_refused_before_anything_is_read(
    tmp_path, model, batch_size, said
):
    file = params_file(tmp_path, "models", {"segnet": GOOD["models"]["segnet"], "unet": model})
    file.write_text(file.read_text().replace("batch_size: 4", f"batch_size: {batch_size}"))
    where = r"model 'unet' in .*params\.yaml, on dataset 'scenes', cannot train with 32x48 pixels, "
    with pytest.raises(ValueError, match=where + f".*{said}"):
        check_params(file)


def test_what_needs_values_is_tried_with_some(monkeypatch):
    calls = []

    def reads_values(x):
        calls.append(x.device.type)
        return x if x.sum().item() == 0 else None

    monkeypatch.setattr(pat.training, "build_model", lambda **options: reads_values)
    check_batch({"name": "mine"}, 8, 2, 3, "model 'mine'")
    assert calls == ["meta", "cpu"]


def test_good_params_are_counted(tmp_path, capsys):
    file = params_file(tmp_path)
    assert check_params(file) == GOOD
    main([str(file)])
    assert capsys.readouterr().out == "params.yaml: 1 runs, all names and options exist\n"


def test_missing_params_file(tmp_path):
    with pytest.raises(SystemExit, match=f"error: {re.escape(str(tmp_path))}/none.yaml does not exist"):
        main([str(tmp_path / "none.yaml")])
