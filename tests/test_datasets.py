"""Datasets made on disk in their real layouts: what `prepare` writes, and how it fails."""

import hashlib
import io
import json
import re
import shutil
import tarfile
from itertools import chain

import h5py
import numpy as np
import pytest
import yaml
from miniatures import (
    COLOURS, NAMES, SIZE, draw, make_camvid, make_cityscapes, make_folder, make_nyuv2, make_oxford_pet, pixels,
    write_nyuv2_mat,
)  # fmt: skip
from PIL import Image
from scipy.io import loadmat, savemat

from pat.datasets import (
    CAMVID, CITYSCAPES, NYUV2, Prepared, label_statistics, load_prepared, open_source, prepare, read_pair,
    split_indices, write_json,
)  # fmt: skip
from pat.params import ROOT


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "mine")


@pytest.fixture
def camvid(tmp_path):
    return make_camvid(tmp_path / "CamVid")


@pytest.fixture
def pets(tmp_path):
    return make_oxford_pet(tmp_path / "pets")


@pytest.fixture
def cityscapes(tmp_path):
    return make_cityscapes(tmp_path / "cityscapes")


@pytest.fixture
def nyuv2(tmp_path):
    return make_nyuv2(tmp_path / "nyuv2")


def resized(image_file, label_file, void, width, height):
    "What PIL alone makes of a pair: bilinear image, nearest label."
    image = Image.open(image_file).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    label = np.array(Image.open(label_file).resize((width, height), Image.Resampling.NEAREST))
    return np.array(image), np.where(label == void, 255, label)


@pytest.mark.parametrize(("width", "height"), [SIZE, (10, 7), (48, 36)])
@pytest.mark.parametrize("void", [255, 11])
def test_folder_arrays_are_what_pil_reads(tmp_path, width, height, void):
    root = make_folder(tmp_path / "mine", ignore_index=void)
    prepare(open_source("folder", root), tmp_path / "cache", height, width)
    data = load_prepared(tmp_path / "cache")
    assert data.images.shape == (10, height, width, 3) and data.labels.shape == (10, height, width)
    assert data.images.dtype == data.labels.dtype == np.uint8
    for i, image_file in enumerate(sorted((root / "images").iterdir())):
        image, label = resized(image_file, root / "labels" / f"{image_file.stem}.png", void, width, height)
        np.testing.assert_array_equal(data.images[i], image)
        np.testing.assert_array_equal(data.labels[i], label)
    assert 255 in data.labels and set(np.unique(data.labels)) == {0, 1, 2, 255}


def test_camvid_arrays_are_what_pil_reads(camvid, tmp_path):
    prepare(open_source("camvid", camvid), tmp_path / "cache", 12, 16, split="official")
    data = load_prepared(tmp_path / "cache")
    position = 0
    for split, images in (("train", 5), ("val", 2), ("test", 3)):
        assert data.meta["splits"][split] == list(range(position, position + images))
        for i in range(images):
            name = f"0001TP_{i:06d}.png"
            image, label = resized(camvid / split / name, camvid / f"{split}annot" / name, 11, 16, 12)
            np.testing.assert_array_equal(data.images[position], image)
            np.testing.assert_array_equal(data.labels[position], label)
            position += 1
    assert data.classes == 11 and data.meta["names"] == list(CAMVID)
    assert 255 in data.labels and 11 not in data.labels


def test_meta_counts_the_labels_of_every_split(folder, tmp_path):
    meta = prepare(open_source("folder", folder), tmp_path / "cache", 18, 24)
    data = load_prepared(tmp_path / "cache")
    assert isinstance(data, Prepared) and data.meta == json.loads(json.dumps(meta))
    assert (meta["names"], meta["colours"], meta["ignore_index"]) == (NAMES, COLOURS, 255)
    for split, members in meta["splits"].items():
        labels, statistics = data.labels[members], meta["statistics"][split]
        assert statistics["images"] == len(members)
        assert statistics["class_pixels"] == [(labels == c).sum() for c in range(3)]
        assert statistics["class_images"] == [(labels == c).any((1, 2)).sum() for c in range(3)]
        for c, quantiles in enumerate(statistics["mask_share_quantiles"]):
            shares = (labels == c).mean((1, 2))
            assert quantiles[::20] == pytest.approx([shares[shares > 0].min(), shares.max()], abs=1e-6)


def test_digest_is_that_of_the_files_and_changes_with_them(folder, tmp_path):
    def digest():
        return prepare(open_source("folder", folder), tmp_path / "cache", 6, 8)["source_sha256"]

    expected = hashlib.sha256()
    for image in sorted((folder / "images").iterdir()):
        for file in (image, folder / "labels" / f"{image.stem}.png"):
            expected.update(hashlib.sha256(file.read_bytes()).digest())
    before = digest()
    assert before == expected.hexdigest() == digest()
    draw(folder / "labels" / "03.png", seed=77)
    assert digest() != before


def test_indexed_labels_are_read_as_indices(folder):
    "Label maps are often stored with a palette: the value is the class, not the colour."
    file = folder / "labels" / "01.png"
    values = np.array(Image.open(file))
    indexed = Image.fromarray(values)
    indexed.putpalette([200, 10, 10] * 256)
    indexed.save(file)
    assert Image.open(file).mode == "P"
    _, label, _ = read_pair(open_source("folder", folder), 1, SIZE[1], SIZE[0])
    np.testing.assert_array_equal(label, values)


def test_grey_image_becomes_three_channels(folder):
    Image.open(folder / "images" / "01.png").convert("L").save(folder / "images" / "01.png")
    image, _, _ = read_pair(open_source("folder", folder), 1, SIZE[1], SIZE[0])
    assert image.shape == (18, 24, 3) and (image[..., 0] == image[..., 2]).all()


# --- splits


@pytest.mark.parametrize(("images", "sizes"), [(10, [8, 1, 1]), (27, [22, 2, 3]), (50, [40, 5, 5])])
def test_paper_split(tmp_path, images, sizes):
    source = open_source("folder", make_folder(tmp_path / "mine", images))
    split = split_indices(source)
    assert [len(split[part]) for part in ("train", "val", "test")] == sizes
    assert sorted(chain(*split.values())) == list(range(images))
    assert split == split_indices(source, seed=0) != split_indices(source, seed=1)


def test_camvid_can_be_split_as_the_paper_does(camvid):
    split = split_indices(open_source("camvid", camvid), "paper")
    assert [len(part) for part in split.values()] == [8, 1, 1]
    assert sorted(chain(*split.values())) == list(range(10))


def test_no_official_split(folder):
    with pytest.raises(ValueError, match="no official split, expected split: paper"):
        split_indices(open_source("folder", folder), "official")


def test_unknown_split(folder):
    with pytest.raises(ValueError, match=r"unknown split 'offical'\. Did you mean 'official'\?"):
        split_indices(open_source("folder", folder), "offical")


@pytest.mark.parametrize("images", [1, 2, 4])
def test_too_few_images(tmp_path, images):
    source = open_source("folder", make_folder(tmp_path / "mine", images))
    with pytest.raises(ValueError, match=f"^{images} images are too few to split"):
        prepare(source, tmp_path / "cache", 18, 24)
    assert not (tmp_path / "cache").exists()


# --- failures when the layout is read


@pytest.mark.parametrize(("format", "hint"), [("folder", "dvc pull data.dvc"), ("camvid", "pat.fetch camvid --from")])
def test_missing_dataset_says_how_to_get_it(tmp_path, format, hint):
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(tmp_path / 'nowhere'))} does not exist: .*{hint}"):
        open_source(format, tmp_path / "nowhere")


def test_unknown_format(folder):
    with pytest.raises(ValueError, match=r"unknown dataset format 'camvd'\. Did you mean 'camvid'\?"):
        open_source("camvd", folder)


def test_no_images(folder):
    for file in (folder / "images").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="mine holds no images"):
        open_source("folder", folder)


def test_no_folder_of_images(folder):
    (folder / "images").rename(folder / "pictures")
    with pytest.raises(FileNotFoundError, match="mine/images does not exist: expected a folder of images"):
        open_source("folder", folder)


def test_image_without_label(folder):
    (folder / "labels" / "03.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels/03\.png does not exist: it is the label of .*images/03\.png"):
        open_source("folder", folder)


def test_no_dataset_yaml(folder):
    (folder / "dataset.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset\.yaml does not exist: it lists names"):
        open_source("folder", folder)


@pytest.mark.parametrize("key", ["names", "colours", "ignore_index"])
def test_missing_key_of_dataset_yaml(folder, key):
    file = folder / "dataset.yaml"
    about = yaml.safe_load(file.read_text())
    del about[key]
    file.write_text(yaml.safe_dump(about))
    expected = rf"dataset\.yaml has no key '{key}', expected names, colours and ignore_index"
    with pytest.raises(ValueError, match=expected):
        open_source("folder", folder)


@pytest.mark.parametrize("line", ["", "val/0001TP_000000.png", "a.png b.png c.png"])
def test_bad_line_of_a_split_list(camvid, line):
    first = (camvid / "val.txt").read_text().splitlines()[0]
    (camvid / "val.txt").write_text(f"{first}\n{line}\n")
    expected = rf"val\.txt:2 reads '{re.escape(line)}', expected an image path and a label path"
    with pytest.raises(ValueError, match=expected):
        open_source("camvid", camvid)


def test_no_split_list(camvid):
    (camvid / "test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.txt does not exist: .*train\.txt, val\.txt and test\.txt"):
        open_source("camvid", camvid)


def test_empty_split_list(camvid):
    (camvid / "val.txt").write_text("")
    with pytest.raises(ValueError, match="CamVid: the official split 'val' is empty"):
        open_source("camvid", camvid)


def test_listed_image_is_not_there(camvid):
    (camvid / "train" / "0001TP_000002.png").unlink()
    expected = r"train/0001TP_000002\.png does not exist: the dataset lists this image"
    with pytest.raises(FileNotFoundError, match=expected):
        open_source("camvid", camvid)


# --- failures when the files are read: the message, and what is left on disk


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def not_an_image(file):
    file.write_text("<html>404 Not Found</html>")


def empty(file):
    file.write_bytes(b"")


def smaller(file):
    draw(file, 0, size=(21, 18))


def value_7(file):
    draw(file, 0, (0, 1, 7))


def colours(file):
    draw(file, 0, "RGB")


def sixteen_bits(file):
    Image.fromarray(np.zeros((18, 24), dtype=np.uint16)).save(file)


FAILURES = [
    ("images/05.png", cut, r"images/05\.png is truncated or not an image \(.*\): fetch it again"),
    ("images/04.jpg", cut, r"images/04\.jpg is truncated or not an image"),
    ("labels/05.png", cut, r"labels/05\.png is truncated or not an image"),
    ("images/05.png", not_an_image, r"images/05\.png is truncated or not an image"),
    ("labels/05.png", empty, r"labels/05\.png is truncated or not an image"),
    ("labels/05.png", smaller, r"labels/05\.png is \(21, 18\) pixels .*, its image .*images/05\.png is \(24, 18\)"),
    ("labels/05.png", value_7, r"labels/05\.png holds \[7\], expected one of \[0, 1, 2, 255\]"),
    ("labels/05.png", colours, r"labels/05\.png has mode RGB, expected one 8-bit channel of class ids"),
    ("labels/05.png", sixteen_bits, r"labels/05\.png has mode I;16, expected one 8-bit channel of class ids"),
]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("name", "spoil", "message"), FAILURES)
def test_bad_file_is_named_and_no_cache_is_touched(folder, tmp_path, name, spoil, message, cached):
    cache = tmp_path / "cache"
    if cached:
        prepare(open_source("folder", folder), cache, 18, 24)
    before = {file.name: file.read_bytes() for file in cache.glob("*")}
    assert len(before) == (4 if cached else 0)
    spoil(folder / name)
    with pytest.raises(ValueError, match=message):
        prepare(open_source("folder", folder), cache, 18, 24)
    assert cache.exists() == cached
    assert {file.name: file.read_bytes() for file in cache.glob("*")} == before


def test_wherever_a_png_is_cut_it_is_an_error_or_the_whole_image(folder):
    "Without its last bytes, the checksum and the end mark, a file can still hold every pixel."
    source, file = open_source("folder", folder), folder / "labels" / "05.png"
    whole, (_, expected, _) = file.read_bytes(), read_pair(source, 5, SIZE[1], SIZE[0])
    errors = 0
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        try:
            _, label, _ = read_pair(source, 5, SIZE[1], SIZE[0])
        except ValueError as error:
            assert str(error).startswith(f"{file} is truncated or not an image")
            errors += 1
        else:
            np.testing.assert_array_equal(label, expected)
    assert errors > len(whole) / 2


def test_whichever_byte_of_a_png_is_wrong_the_file_is_named(folder):
    "Bytes that matter to no pixel may pass; an error of any kind but a ValueError with the name may not."
    source, file = open_source("folder", folder), folder / "images" / "05.png"
    whole, errors = file.read_bytes(), 0
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            read_pair(source, 5, SIZE[1], SIZE[0])
        except ValueError as error:
            assert str(file) in str(error)
            errors += 1
    assert errors > len(whole) / 2


def test_prepare_replaces_what_was_there_and_leaves_nothing_else(folder, tmp_path):
    source = open_source("folder", folder)
    prepare(source, tmp_path / "cache", 18, 24)
    (tmp_path / "cache" / "old.txt").write_text("of an earlier version")
    prepare(source, tmp_path / "cache", 9, 12)
    files = ["images.npy", "journal.jsonl", "labels.npy", "meta.json"]
    assert sorted(file.name for file in (tmp_path / "cache").iterdir()) == files
    assert load_prepared(tmp_path / "cache").labels.shape == (10, 9, 12)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cache", "cache.lock", "mine"]


def test_nothing_prepared_says_what_to_run(tmp_path):
    expected = r"cache/meta\.json does not exist: .*`dvc repro` runs the stage prepare"
    with pytest.raises(FileNotFoundError, match=expected):
        load_prepared(tmp_path / "cache")


def test_write_json_keeps_the_old_file_when_it_fails(tmp_path):
    file = tmp_path / "new" / "scores.json"
    write_json(file, {"miou": 0.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(file, {"miou": float("nan")})
    assert json.loads(file.read_text()) == {"miou": 0.5}
    assert list(file.parent.iterdir()) == [file]


def test_two_images_with_one_label_are_refused(scenes_folder, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(scenes_folder, folder)
    shutil.copy(folder / "images/0003.png", folder / "images/0003.bmp")
    with pytest.raises(ValueError, match=r"0003\.bmp and .*0003\.png share the label .*0003\.png"):
        open_source("folder", folder)


def test_hidden_files_are_no_images(scenes_folder, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(scenes_folder, folder)
    (folder / "images/.DS_Store").write_bytes(b"x")
    assert len(open_source("folder", folder).pairs) == len(open_source("folder", scenes_folder).pairs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no key 'names'"),
        ("names: [a, b", "dataset.yaml is not valid YAML"),
        ("names: [a, b]\ncolours: [[0, 0, 0]]\nignore_index: 255", "has 2 names and 1 colours"),
        ("names: [a]\ncolours: [[0, 0, 0]]\nignore_index: 300", "has ignore_index 300, expected 0 to 255"),
        ("names: [a]\ncolours: [[0, 0, 0]]\nignore_index:", "has ignore_index None, expected 0 to 255"),
    ],
)
def test_dataset_yaml_that_cannot_be(scenes_folder, tmp_path, text, message):
    folder = tmp_path / "scenes"
    shutil.copytree(scenes_folder, folder)
    (folder / "dataset.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_source("folder", folder)


def test_an_image_in_two_splits_is_refused(tmp_path):
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / folder / "a.png")
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.txt").write_text("/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png\n")
    with pytest.raises(ValueError, match=r"train/a\.png stands in the split lists more than once"):
        open_source("camvid", tmp_path)
