"""Several processes that share every batch find what one finds; deterministic algorithms; torch.compile; the log."""

import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_training import assert_same, make_settings
from torch import nn

from pat import training
from pat.datasets import load_prepared
from pat.devices import GlobalBatchNorm, deterministic, share
from pat.training import train, train_settings


def close(one, other, tolerance):
    "All scores of all epochs, and of the test."
    assert [row.keys() for row in one["history"]] == [row.keys() for row in other["history"]]
    for row, same in zip(one["history"], other["history"], strict=True):
        assert row == pytest.approx(same, abs=tolerance, nan_ok=True)
    np.testing.assert_allclose(one["counts"], other["counts"], atol=20)  # pixels at a tie
    tests = [outcome["result"]["test"] for outcome in (one, other)]
    assert tests[0]["miou"] == pytest.approx(tests[1]["miou"], abs=tolerance)


# --- two processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "loss", "batch_size", "augment"),
    [
        ("segnet", "pat", 5, None),  # 16 images: 5, 5, 5 and, left out, 1
        # noise for each image; not SegNet, whose pooling may choose another one of two values that are equal but for
        # rounding, such as outside of a shifted image
        ("unet", "blv", 4, {"flip": 0.5, "shift": 0.1}),
    ],
)
def test_two_processes_find_what_one_finds(prepared_folder, tmp_path, model, loss, batch_size, augment):
    data = load_prepared(prepared_folder)
    settings = make_settings(model, loss, batch_size=batch_size, augment=augment, epochs=2, threads=1, lr=1e-4)
    one = train(settings, data, tmp_path / "one", progress=False)
    settings["train"] = settings["train"] | {"devices": 2}
    two = train(settings, data, tmp_path / "two", progress=False)
    close(one, two, 1e-5)
    assert [one["cost"]["devices"], two["cost"]["devices"]] == [1, 2]
    assert {file.name for file in (tmp_path / "two").iterdir()} - {"lock"} == {"best.ckpt"}


def both(rank, world, folder, tests):
    "One of two processes; what goes wrong in it is raised by the other."
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    for test in tests:
        test(rank, world)
    dist.destroy_process_group()


def normalised(rank, world):
    "Values, running statistics and all gradients of a norm, of three images that two processes share."
    for images in (3, 1):  # of one image, the first process has none
        torch.manual_seed(0)
        x, weights = torch.randn(2, images, 4, 5, 6, dtype=torch.float64)
        norms = [nn.BatchNorm2d(4).double() for _ in range(2)]
        whole, part = x.clone().requires_grad_(), x.clone().requires_grad_()
        expected = norms[0](whole)
        (expected * weights).sum().backward()
        mine = share(images, rank, world)
        with GlobalBatchNorm():
            found = norms[1](part[mine])
        (found * weights[mine]).sum().backward()
        torch.testing.assert_close(found, expected[mine])
        torch.testing.assert_close(part.grad[mine], whole.grad[mine])
        for name, buffer in norms[0].named_buffers():
            if name != "num_batches_tracked":
                torch.testing.assert_close(norms[1].get_buffer(name), buffer)
        for one, other in zip(*(norm.parameters() for norm in norms), strict=True):
            dist.all_reduce(other.grad)
            torch.testing.assert_close(other.grad, one.grad)


def single_value(rank, world):
    "One value per channel in all processes together is an error in each."
    norm = nn.BatchNorm2d(4)
    with GlobalBatchNorm(), pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        norm(torch.zeros(1, 4, 1, 1)[share(1, rank, world)])


def without_parts(rank, world):
    "A norm without weights or running statistics."
    x = torch.arange(24.0).view(2, 3, 4, 1)
    norm, mine = nn.BatchNorm2d(3, affine=False, track_running_stats=False), share(2, rank, world)
    expected = norm(x)[mine]
    with GlobalBatchNorm():
        torch.testing.assert_close(norm(x[mine]), expected)


@pytest.mark.slow
def test_batch_norm_of_two_processes(tmp_path):
    mp.start_processes(both, (2, tmp_path, [normalised, single_value, without_parts]), nprocs=2, start_method="spawn")


def test_parts_of_a_batch_are_whole_and_even():
    for world in range(1, 5):
        for n in range(9):
            parts = [range(n)[share(n, rank, world)] for rank in range(world)]
            assert [i for part in parts for i in part] == list(range(n))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("options", "message"), [
    ({"devices": 0}, "train.devices is 0, expected a whole number of at least 1"),
    ({"devices": 5}, "train.devices is 5 and train.batch_size 4: expected an image for each device at least"),
    ({"deterministic": "yes"}, "unknown value of train.deterministic 'yes'"),
    ({"compile": 1.5}, "unknown value of train.compile 1.5"),
])  # fmt: skip
def test_bad_setting(options, message):
    with pytest.raises(ValueError, match=message):
        train_settings({"epochs": 3, "batch_size": 4} | options)


def test_prepared_arrays_travel_as_names_of_files(prepared_folder, scenes):
    data = load_prepared(prepared_folder)
    travelled = pickle.dumps(data)
    assert len(travelled) < data.images.nbytes / 2
    again = pickle.loads(travelled)
    np.testing.assert_array_equal(again.images, data.images)
    assert isinstance(again.images, np.memmap) and again.meta == data.meta
    data.images = data.images[2:]  # a part of a map is none
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data)).images, data.images)


# --- deterministic algorithms


def test_an_operation_without_a_deterministic_form_is_named(scenes, tmp_path, capsys):
    settings = make_settings("segnet", epochs=1, deterministic=True)
    train(settings, scenes, tmp_path / "one", progress=False)
    assert "no deterministic algorithm for max_unpooling2d_forward_out\n" in capsys.readouterr().out
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_algorithms_are_used_while_it_trains(scenes, tmp_path, monkeypatch):
    seen, epoch = [], training.train_epoch
    look = lambda *args: seen.append(torch.are_deterministic_algorithms_enabled()) or epoch(*args)
    monkeypatch.setattr(training, "train_epoch", look)
    for wanted in (True, False):
        train(make_settings("unet", epochs=1, deterministic=wanted), scenes, tmp_path / f"{wanted}", progress=False)
    assert seen == [True, False]


def test_other_warnings_are_still_shown():
    with pytest.warns(UserWarning, match="look here"), deterministic() as found:
        warnings.warn("look here", stacklevel=1)
    assert found == set()


# --- torch.compile


@pytest.mark.slow
def test_compiled_run_stays_close(scenes, tmp_path):
    settings = make_settings("unet", "pat", epochs=1)
    settings["model_options"]["levels"] = 1
    plain = train(settings, scenes, tmp_path / "plain", progress=False)
    settings["train"] = settings["train"] | {"compile": True}
    compiled = train(settings, scenes, tmp_path / "compiled", progress=False)
    close(plain, compiled, 1e-2)
    assert plain["history"] != compiled["history"]  # other kernels were at work
    weights = torch.load(tmp_path / "compiled" / "best.ckpt", weights_only=True)["model"]
    assert weights.keys() == torch.load(tmp_path / "plain" / "best.ckpt", weights_only=True)["model"].keys()


# --- the log


def test_log_holds_every_epoch_once(scenes, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = train(make_settings(), scenes, tmp_path / "run", progress=False, logs=tmp_path / "logs")
    log = EventAccumulator(str(tmp_path / "logs" / "tiny-segnet-ce")).Reload()
    wanted = ["loss", "lr", "val_miou", "val_miou_tail", "val_miou_head", "val_pixel_accuracy", "val_ce"]
    assert {*wanted} <= {*log.Tags()["scalars"]}
    for name in ("loss", "val_miou", "val_ce"):
        assert [event.step for event in log.Scalars(name)] == [0, 1, 2]
        assert [event.value for event in log.Scalars(name)] == pytest.approx([row[name] for row in outcome["history"]])
    rates = [event.value for event in log.Scalars("lr")]
    assert rates == pytest.approx([1e-2, 0.75e-2, 0.25e-2])  # half a cosine in three epochs, at the start of each


def test_log_without_tensorboard(scenes, tmp_path, monkeypatch):
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):  # what the logger has found out
        monkeypatch.setattr(f"lightning_fabric.loggers.tensorboard.{name}", False)
    with pytest.raises(ModuleNotFoundError, match=r"`tensorboard`.*pip install"):
        train(make_settings(), scenes, tmp_path, progress=False, logs=tmp_path / "logs")


def test_run_with_a_log_finds_the_same(scenes, tmp_path):
    plain = train(make_settings(), scenes, tmp_path / "plain", progress=False)
    assert_same(plain, train(make_settings(), scenes, tmp_path / "logged", progress=False, logs=tmp_path / "logs"))
