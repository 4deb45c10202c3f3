"Photos of unlike shapes: squeezed, padded or cut into tiles, and the windows that train from the tiles."

import json

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from pat import training
from pat.annotation import FilePair
from pat.datasets import GREY, fit_image, load_prepared, open_source, picture_size, prepare, prepare_dataset, tiles
from pat.training import cut_window, evaluate, loader, train, whole_images

SIZES = [(40, 30), (30, 40), (64, 24), (17, 55), (20, 20), (48, 36), (23, 31), (50, 50), (32, 24), (16, 12), (90, 40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Photos of many shapes; class 1 is a spot of 2 x 2 pixels, class 2 the lower half, red in the photo."
    root = tmp_path_factory.mktemp("shapes")
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    for i, (width, height) in enumerate(SIZES):
        label = np.zeros((height, width), np.uint8)
        label[height // 2 :] = 2
        label[3:5, 5 + i % 4 : 7 + i % 4] = 1
        image = np.random.default_rng(i).integers(0, 200, (height, width, 3), dtype=np.uint8)
        image[..., 0] = 100 * label
        Image.fromarray(image).save(root / f"images/{i:02d}.png")
        Image.fromarray(label).save(root / f"labels/{i:02d}.png")
    names = {"names": ["back", "spot", "lower"], "ignore_index": 255}
    (root / "dataset.yaml").write_text(yaml.safe_dump(names))
    return root


def made(folder, cache, resize, **options):
    prepare(open_source("folder", folder), cache, 24, 32, resize=resize, **options)
    return load_prepared(cache)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40))
def test_padding_keeps_proportions_and_marks_what_it_adds(w, h, height, width):
    photo, label = Image.new("RGB", (w, h), (200, 200, 200)), Image.new("L", (w, h), 3)
    pixels, (rows, columns) = fit_image(photo, height, width, "pad")
    classes, place = fit_image(label, height, width, "pad", label=True)
    assert pixels.size == classes.size == (width, height) and place == (rows, columns)
    inside = np.zeros((height, width), bool)
    inside[rows, columns] = True
    assert (np.asarray(classes) == np.where(inside, 3, 255)).all()
    assert (np.asarray(pixels) == np.where(inside, 200, GREY)[..., None]).all()
    scale = min(width / w, height / h)
    assert abs((rows.stop - rows.start) - scale * h) <= 1 and abs((columns.stop - columns.start) - scale * w) <= 1
    assert rows.stop - rows.start == height or columns.stop - columns.start == width
    assert abs(rows.start - (height - rows.stop)) <= 1 and abs(columns.start - (width - columns.stop)) <= 1


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 25), st.integers(1, 25))
def test_tiles_hold_every_pixel_once(w, h, height, width):
    numbers = np.arange(w * h, dtype=np.int64).reshape(h, w) % 251
    parts = [np.asarray(t) for t in tiles(Image.fromarray(numbers.astype(np.uint8)), height, width, label=True)]
    assert len(parts) == -(-h // height) * -(-w // width)
    counted = sum(np.bincount(part.ravel(), minlength=256) for part in parts)
    assert (counted[:251] == np.bincount(numbers.ravel(), minlength=256)[:251]).all()  # the rest is void


def test_squeezing_is_what_is_done_when_nothing_is_said(folder, tmp_path):
    made(folder, tmp_path / "a", "squeeze"), prepare(open_source("folder", folder), tmp_path / "b", 24, 32)
    for name in ("images.npy", "labels.npy", "meta.json", "journal.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_padded_arrays_are_void_beside_the_image(folder, tmp_path):
    data = made(folder, tmp_path / "cache", "pad")
    assert data.images.shape == (11, 24, 32, 3)
    for (width, height), label, image in zip(SIZES, data.labels, data.images, strict=True):
        share = min(24 / height, 32 / width) ** 2 * height * width / (24 * 32)
        assert (label != 255).mean() == pytest.approx(share, abs=0.05)
        assert (image[label == 255] == GREY).all()


def test_small_objects_keep_their_size_in_tiles(folder, tmp_path):
    cut, squeezed = (made(folder, tmp_path / how, how) for how in ("crop", "squeeze"))
    pixels = lambda data: sum(np.array(s["class_pixels"]) for s in data.meta["statistics"].values())
    assert pixels(cut)[1] == 4 * len(SIZES)  # every spot, pixel by pixel
    assert (squeezed.labels[10] == 1).sum() < 4  # of the widest photo, squeezed to a third
    assert len(cut.images) == sum(-(-h // 24) * -(-w // 32) for w, h in SIZES)


def test_all_tiles_of_an_image_are_in_one_split(folder, tmp_path):
    data = made(folder, tmp_path / "cache", "crop")
    side = {row: split for split, rows in data.meta["splits"].items() for row in rows}
    assert sorted(side) == list(range(len(data.images)))
    for index in range(len(SIZES)):
        assert len({side[row] for row in data.layout.rows(index)}) == 1
    whole = made(folder, tmp_path / "whole", "squeeze").meta["splits"]
    assert {split: sorted({np.searchsorted(data.layout.ends, row, "right") for row in rows})
            for split, rows in data.meta["splits"].items()} == whole  # fmt: skip


@pytest.mark.parametrize("threads", [1, 3])
def test_a_killed_attempt_is_gone_on_from(folder, tmp_path, threads, monkeypatch, capsys):
    from pat import datasets

    whole = made(folder, tmp_path / "whole", "crop")
    real = datasets.read_resized
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "read_resized", lambda s, i, *a: 1 / 0 if i == 6 else real(s, i, *a))
        with pytest.raises(ZeroDivisionError):
            made(folder, tmp_path / "cache", "crop", threads=threads)
    done = len((tmp_path / "cache.tmp" / "journal.jsonl").read_text().splitlines()) - 1
    read = []
    monkeypatch.setattr(datasets, "read_resized", lambda s, i, *a: (read.append(i), real(s, i, *a))[1])
    again = made(folder, tmp_path / "cache", "crop", threads=threads)
    assert sorted(read) == list(range(done, len(SIZES)))
    assert (again.images == whole.images).all() and (again.labels == whole.labels).all() and again.meta == whole.meta


def test_another_resize_prepares_anew(folder, tmp_path, capsys):
    made(folder, tmp_path / "cache", "pad")
    made(folder, tmp_path / "cache", "squeeze")
    assert "was prepared with another resize: all images are read again" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"unknown value of resize 'stretch'.*squeeze, pad, crop"):
        made(folder, tmp_path / "cache", "stretch")


def test_params_say_how(folder, tmp_path):
    options = {"format": "folder", "path": str(folder), "height": 24, "width": 32, "split": "paper", "resize": "crop"}
    assert prepare_dataset(options, tmp_path / "cache")["sizes"][2] == (24, 64)
    assert json.loads((tmp_path / "cache/meta.json").read_text())["sizes"][2] == [24, 64]


def test_size_of_a_turned_photo(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (10, 20)).save(tmp_path / "a.png")
    assert picture_size(FilePair(tmp_path / "a.jpg", tmp_path / "a.png", "sizes")) == (20, 10)


class Seen(nn.Module):
    "A network without a network: it reads the class off the red channel, pixel by pixel."

    def forward(self, x):
        red = ((x[:, 0] + 1) * 127.5 / 100).round().clamp(0, 2).long()
        return nn.functional.one_hot(red, 3).permute(0, 3, 1, 2).float()


def test_scores_over_tiles_are_those_of_whole_images(folder, tmp_path):
    data = made(folder, tmp_path / "cache", "crop")
    matrices, _ = evaluate(Seen(), data, "train", 4)
    whole = whole_images(matrices, data, "train")
    images = sorted({int(np.searchsorted(data.layout.ends, row, "right")) for row in data.meta["splits"]["train"]})
    assert len(whole) == len(images) < len(matrices)
    for matrix, index in zip(whole, images, strict=True):
        width, height = SIZES[index]
        label = np.asarray(Image.open(folder / f"labels/{index:02d}.png"))
        assert matrix.sum() == width * height  # every pixel once, no padding
        assert np.diag(matrix).tolist() == np.bincount(label.ravel(), minlength=3).tolist()


def test_counts_of_a_run_are_per_image(folder, tmp_path):
    data = made(folder, tmp_path / "cache", "crop")
    outcome = train(settings(), data, tmp_path / "run", progress=False)
    tested = {int(np.searchsorted(data.layout.ends, row, "right")) for row in data.meta["splits"]["test"]}
    assert outcome["counts"].shape == (len(tested), 3, 3)


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_a_window_is_what_lies_there(rows, columns, data):
    whole = np.random.default_rng(0).integers(0, 99, (rows * 3, columns * 5))
    parts = np.stack([whole[3 * r : 3 * r + 3, 5 * c : 5 * c + 5] for r in range(rows) for c in range(columns)])
    y, x = data.draw(st.integers(0, 3 * rows - 3)), data.draw(st.integers(0, 5 * columns - 5))
    assert (cut_window(parts, (rows, columns), y, x) == whole[y : y + 3, x : x + 5]).all()


def test_windows_lie_in_the_image_and_elsewhere_each_epoch(folder, tmp_path):
    data = made(folder, tmp_path / "cache", "crop")
    batches = loader(data, "train", 4, torch.Generator().manual_seed(0)).dataset
    seen = set()
    for row in data.meta["splits"]["train"]:
        width, height = SIZES[int(np.searchsorted(data.layout.ends, row, "right"))]
        for epoch in range(20):
            batches.epoch = epoch
            image, label = batches.window(row)
            assert (label != 255).sum() == min(24, height) * min(32, width)  # padding only where the image is smaller
            assert (image[label != 255][:, 0] == 100 * label[label != 255]).all()  # image and label fit
            seen.add(image.tobytes())
    assert len(seen) > 5 * len(data.meta["splits"]["train"])


def settings(epochs=3, workers=0):
    options = {"epochs": epochs, "batch_size": 4, "threads": 1, "accelerator": "cpu", "workers": workers}
    model = {"name": "segnet", "width": 4, "depths": [1]}
    return {"run": "x", "profile": "p", "dataset": "d", "model": "m", "model_options": model, "seed": 0, "loss": "ce",
            "loss_options": {"name": "ce"}, "train": options}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_goes_on_draws_the_same_windows(folder, tmp_path, monkeypatch, workers):
    data = made(folder, tmp_path / "cache", "crop")
    whole = train(settings(), data, tmp_path / "whole", progress=False)
    real = training.validate
    with monkeypatch.context() as patch:
        patch.setattr(training, "validate", lambda t: 1 / 0 if len(t.history) == 2 else real(t))
        with pytest.raises(ZeroDivisionError):
            train(settings(workers=workers), data, tmp_path / "cut", progress=False)
    again = train(settings(workers=workers), data, tmp_path / "cut", progress=False)
    assert again["history"] == whole["history"] and again["result"]["test"] == whole["result"]["test"]


def test_a_checkpoint_of_squeezed_images_is_not_gone_on_with_on_padded_ones(folder, tmp_path, capsys):
    squeezed, padded = (made(folder, tmp_path / resize, resize) for resize in ("squeeze", "pad"))
    trainer = training.build_trainer(settings(), squeezed)
    training.save_checkpoint(trainer.fabric, tmp_path / "last.ckpt", training.checkpoint_state(trainer))
    assert training.belongs(trainer, tmp_path / "last.ckpt")
    assert not training.belongs(training.build_trainer(settings(), padded), tmp_path / "last.ckpt")
    assert "belongs to another training (the data are others)" in capsys.readouterr().out


@pytest.mark.parametrize("resize", ["pad", "crop"])
def test_augmentation_goes_with_every_way_to_resize(folder, tmp_path, resize):
    "Windows, changes and the order of the images: all the same after a stop, and the padding stays without labels."
    data, wanted = made(folder, tmp_path / "cache", resize), settings()
    wanted["train"]["augment"] = {"flip": 0.5, "shift": 0.1, "scale": 0.2, "rotate": 20}
    whole, plain = (train(s, data, tmp_path / str(i), progress=False) for i, s in enumerate((wanted, settings())))
    trainer = training.build_trainer(wanted, data)
    trainer.cfg.epochs = 2
    training.fit(trainer, tmp_path / "0" / "last.ckpt", progress=False)
    again = train(wanted, data, tmp_path / "0", progress=False)
    assert again["history"] == whole["history"] != plain["history"]
