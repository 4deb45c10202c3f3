"""Datasets made on disk in their real layouts: what `prepare` writes, and how it fails."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import chain

import h5py
import numpy as np
import pytest
from miniatures import (
    COLOURS,
    NAMES,
    SIZE,
    draw,
    make_camvid,
    make_cityscapes,
    make_folder,
    make_nyuv2,
    make_oxford_pet,
    pixels,
    write_nyuv2_mat,
)
from PIL import Image
from scipy.io import loadmat, savemat

from pat.datasets import (
    CAMVID,
    CITYSCAPES,
    NYUV2,
    Prepared,
    Source,
    load_prepared,
    open_source,
    prepare,
    read_pair,
    split_indices,
    write_json,
)
from pat.params import ROOT
from pat.training import check_dataset


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


def test_oxford_pet_arrays_are_what_pil_reads(pets):
    "JPEG images of several sizes, one of them a GIF by content; trimap 1, 2, 3 is class 0, 1, 2."
    source = open_source("oxford_pet", pets)
    lines = [line for name in ("trainval", "test") for line in (pets / f"annotations/{name}.txt").open()]
    assert len(source.pairs) == len(lines) == 14 and source.names == ["pet", "background", "border"]
    kinds, sizes = set(), set()
    for i, line in enumerate(lines):
        image_file, label_file = (pets / path.format(line.split()[0]) for path in
                                  ("images/{}.jpg", "annotations/trimaps/{}.png"))  # fmt: skip
        with Image.open(image_file) as file:
            kinds.add(file.format), sizes.add(file.size)
        image, label = resized(image_file, label_file, None, 12, 9)
        got_image, got_label, _ = read_pair(source, i, 9, 12)
        np.testing.assert_array_equal(got_image, image)
        np.testing.assert_array_equal(got_label, label - 1)
    assert kinds == {"JPEG", "GIF"} and len(sizes) == 2


TRAINED = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]  # Cityscapes' ids, in class order


def test_cityscapes_arrays_are_what_pil_reads(cityscapes):
    source = open_source("cityscapes", cityscapes)
    scenes = [f"{split}/{city}/{city}_{i:06d}_000019" for split, city, n in
              (("train", "aachen", 5), ("train", "bremen", 5), ("val", "lindau", 3)) for i in range(n)]  # fmt: skip
    assert len(source.pairs) == len(scenes) == 13  # none of the folder test
    for i, scene in enumerate(scenes):
        files = cityscapes / f"leftImg8bit/{scene}_leftImg8bit.png", cityscapes / f"gtFine/{scene}_gtFine_labelIds.png"
        image, ids = resized(*files, None, *SIZE)
        assert set(np.unique(ids)) == set(range(34))
        expected = [TRAINED.index(value) if value in TRAINED else 255 for value in ids.ravel().tolist()]
        got_image, got_label, _ = read_pair(source, i, SIZE[1], SIZE[0])
        np.testing.assert_array_equal(got_image, image)
        assert got_label.ravel().tolist() == expected


def test_cityscapes_table_is_that_of_its_authors():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels", reason="cityscapesScripts is not installed").labels
    trained = sorted((label for label in labels if 0 <= label.trainId < 255), key=lambda label: label.trainId)
    assert {label.name: (label.id, list(label.color)) for label in trained} == CITYSCAPES
    assert list(CITYSCAPES) == [label.name for label in trained]


def test_nyuv2_arrays_are_what_was_written(nyuv2):
    "Rows and columns, colours and numbering survive MATLAB's transposed axes; 894 labels become 13 classes."
    source = open_source("nyuv2", nyuv2)
    assert len(source.pairs) == 14 and source.names == list(NYUV2)
    values = [0, *range(1, 895, 9), 894]
    seen = set()
    for i in range(14):
        image, label, _ = read_pair(source, i, SIZE[1], SIZE[0])
        np.testing.assert_array_equal(image, pixels(i, "RGB"))
        written = pixels(i, values)
        # label n is class (n - 1) mod 40 of forty, and that, counted from the last, mod 13 of thirteen
        np.testing.assert_array_equal(label, np.where(written == 0, 255, (39 - (written.astype(int) - 1) % 40) % 13))
        seen |= set(np.unique(label).tolist())
    assert seen == {*range(13), 255}
    small_image, small, _ = read_pair(source, 3, 6, 8)
    np.testing.assert_array_equal(small_image, Image.fromarray(pixels(3, "RGB")).resize((8, 6), Image.BILINEAR))
    full = read_pair(source, 3, SIZE[1], SIZE[0])[1]
    np.testing.assert_array_equal(small, Image.fromarray(full).resize((8, 6), Image.NEAREST))


@pytest.mark.parametrize("format", ["camvid", "cityscapes", "nyuv2"])
def test_void_can_be_one_more_class(format, request, tmp_path):
    root = request.getfixturevalue(format)
    ignored, scored = open_source(format, root), open_source(format, root, void="class")
    classes = len(ignored.names)
    assert scored.names == [*ignored.names, "void"] and scored.colours == [*ignored.colours, [0, 0, 0]]
    for source, name in ((ignored, "ignored"), (scored, "scored")):
        prepare(source, tmp_path / name, 9, 12)
    ignored, scored = load_prepared(tmp_path / "ignored"), load_prepared(tmp_path / "scored")
    assert (classes, scored.classes) == (ignored.classes, {"camvid": 12, "cityscapes": 20, "nyuv2": 14}[format])
    assert 255 in ignored.labels and 255 not in scored.labels
    np.testing.assert_array_equal(scored.labels, np.where(ignored.labels == 255, classes, ignored.labels))
    train = scored.meta["splits"]["train"]
    counted = scored.meta["statistics"]["train"]["class_pixels"]
    assert counted[-1] == (ignored.labels[train] == 255).sum() > 0
    assert counted[:-1] == ignored.meta["statistics"]["train"]["class_pixels"]


def test_void_where_there_is_none_is_an_error(pets):
    with pytest.raises(ValueError, match="pets has no void, every pixel has a class: expected void: ignore"):
        open_source("oxford_pet", pets, void="class")


def test_void_is_an_option_of_a_params_yaml():
    options = {"format": "camvid", "path": "datasets/camvid", "height": 96, "width": 128, "split": "official"}
    for void in ({}, {"void": "ignore"}, {"void": "class"}):
        check_dataset(options | void, "of dataset 'camvid' in params.yaml")
    with pytest.raises(ValueError, match=r"unknown void of dataset 'camvid' .* 'clas'\. Did you mean 'class'\?"):
        check_dataset(options | {"void": "clas"}, "of dataset 'camvid' in params.yaml")


def test_unknown_value_of_void(camvid):
    with pytest.raises(ValueError, match=r"unknown value of void 'clas'\. Did you mean 'class'\?"):
        open_source("camvid", camvid, void="clas")


REAL = ROOT / "../shared/data/camvid"


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/camvid is not here")
def test_real_camvid_is_what_the_results_in_git_were_trained_on(tmp_path):
    known = json.loads((ROOT / "results/camvid/datasets/camvid.json").read_text())
    meta = prepare(open_source("camvid", REAL), tmp_path / "cache", 96, 128, split="official")
    for key in ("names", "colours", "ignore_index", "statistics", "source_sha256"):
        assert meta[key] == known[key], key
    assert [len(part) for part in meta["splits"].values()] == [367, 101, 233]


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


def test_relative_paths_start_at_the_working_directory_outside_of_a_project(tmp_path):
    make_folder(tmp_path / "my")
    code = "from pat.datasets import open_source; print(len(open_source('folder', 'my').pairs))"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == "10\n", done.stderr
    (tmp_path / "other").mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "other", env=env, capture_output=True, text=True)
    assert f"{tmp_path}/other/my does not exist" in done.stderr


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


@pytest.mark.parametrize("format", ["oxford_pet", "cityscapes", "nyuv2"])
def test_a_tenth_of_the_official_training_images_validates(format, tmp_path):
    make = {"oxford_pet": make_oxford_pet, "nyuv2": make_nyuv2, "cityscapes": make_cityscapes}[format]
    source = open_source(format, make(tmp_path / format))
    split = split_indices(source, "official")
    assert [len(split[part]) for part in ("train", "val", "test")] == [9, 1, len(source.pairs) - 10]
    assert split["test"] == source.official["test"]  # nothing of it is chosen on
    assert sorted(split["train"] + split["val"]) == source.official["train"]
    assert split == split_indices(source, "official")
    assert len({tuple(split_indices(source, "official", seed)["val"]) for seed in range(10)}) > 1


def test_too_few_official_training_images_to_validate_with(tmp_path):
    source = open_source("oxford_pet", make_oxford_pet(tmp_path / "pets", trainval=4, test=2))
    with pytest.raises(ValueError, match=r"^4 images are too few to split 0\.9 / 0\.1"):
        split_indices(source, "official")


def test_official_splits_are_those_of_the_files(pets, cityscapes, nyuv2):
    source = open_source("oxford_pet", pets)
    for name, split in (("trainval", "train"), ("test", "test")):
        listed = [line.split()[0] for line in (pets / f"annotations/{name}.txt").open()]
        assert [source.pairs[i].image.stem for i in source.official[split]] == listed
    source = open_source("cityscapes", cityscapes)
    assert {source.pairs[i].image.parts[-3] for i in source.official["train"]} == {"train"}
    assert {source.pairs[i].image.parts[-3] for i in source.official["test"]} == {"val"}
    source, splits = open_source("nyuv2", nyuv2), loadmat(nyuv2 / "splits.mat")
    for split in ("train", "test"):
        assert [source.pairs[i].position + 1 for i in source.official[split]] == splits[f"{split}Ndxs"].ravel().tolist()


def test_existing_splits_stay_as_they_are():
    "Results in git were trained on these: 500 streets and CamVid's 701 images, seed 0."
    source = Source(NAMES, COLOURS, [None] * 500, {0: 0})
    split = split_indices(source)
    assert split["val"][:8] == [3, 21, 22, 24, 59, 62, 66, 76] and split["test"][:8] == [7, 29, 49, 56, 58, 69, 73, 78]
    split = split_indices(Source(NAMES, COLOURS, [None] * 701, {0: 0}))
    assert [len(part) for part in split.values()] == [561, 70, 70]
    assert split["val"][:4] == [1, 11, 16, 30] and split["test"][:4] == [3, 7, 21, 22]


def test_no_official_split(folder):
    with pytest.raises(ValueError, match="no official split, expected split: paper"):
        split_indices(open_source("folder", folder), "official")


def test_unknown_split(folder):
    with pytest.raises(ValueError, match=r"unknown split 'offical'\. Did you mean 'official'\?"):
        split_indices(open_source("folder", folder), "offical")


@pytest.mark.parametrize("images", [1, 2, 4])
def test_too_few_images(tmp_path, images):
    source = open_source("folder", make_folder(tmp_path / "mine", images))
    with pytest.raises(ValueError, match=f"^{images} images are too few to split .*: add images, or say which"):
        prepare(source, tmp_path / "cache", 18, 24)
    assert not (tmp_path / "cache").exists()


# --- failures when the layout is read


@pytest.mark.parametrize(
    ("format", "hint"),
    [
        ("folder", "dvc pull data.dvc"),
        ("camvid", "pat.fetch camvid"),
        ("oxford_pet", "pat.fetch oxford_pet"),
        ("cityscapes", "pat.fetch cityscapes"),
        ("nyuv2", "pat.fetch nyuv2"),
    ],
)
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
    with pytest.raises(FileNotFoundError, match=r"dataset\.yaml does not exist: it names the classes"):
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


@pytest.mark.parametrize(
    ("format", "gone", "message"),
    [
        ("oxford_pet", "annotations/test.txt", r"annotations/test\.txt does not exist: the annotations hold trainval"),
        ("oxford_pet", "images/beagle_1.jpg", r"images/beagle_1\.jpg does not exist: the dataset lists this image"),
        ("oxford_pet", "annotations/trimaps/beagle_4.png",
         r"trimaps/beagle_4\.png does not exist: it is the label of .*images/beagle_4\.jpg"),
        ("cityscapes", "gtFine/val", "gtFine/val does not exist: Cityscapes has gtFine/train and gtFine/val"),
        ("cityscapes", "leftImg8bit", "leftImg8bit/train does not exist: Cityscapes has leftImg8bit/train and"),
        ("cityscapes", "leftImg8bit/val/lindau/lindau_000001_000019_leftImg8bit.png",
         r"lindau_000001_000019_leftImg8bit\.png does not exist: the dataset lists this image"),
        ("cityscapes", "gtFine/train/bremen/bremen_000004_000019_gtFine_labelIds.png",
         r"bremen_000004_000019_gtFine_labelIds\.png does not exist: it is the label of .*bremen_000004_000019_left"),
        ("nyuv2", "nyu_depth_v2_labeled.mat", r"labeled\.mat does not exist: it holds the images; run .*fetch nyuv2"),
        ("nyuv2", "splits.mat", r"splits\.mat does not exist: NYUv2 comes with splits\.mat, classMapping40\.mat and"),
        ("nyuv2", "classMapping40.mat", r"classMapping40\.mat does not exist: NYUv2 comes with"),
        ("nyuv2", "class13Mapping.mat", r"class13Mapping\.mat does not exist: NYUv2 comes with"),
    ],
)  # fmt: skip
def test_missing_part_is_named(format, gone, message, request):
    root = request.getfixturevalue({"oxford_pet": "pets"}.get(format, format))
    open_source(format, root)
    gone = root / gone
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(FileNotFoundError, match=message):
        open_source(format, root)


def test_bad_line_of_a_pet_list(pets):
    (pets / "annotations/test.txt").write_text("beagle_10 2 2 1\nbeagle_13\n")
    with pytest.raises(ValueError, match=r"annotations/test\.txt:2 reads 'beagle_13', expected a name and three"):
        open_source("oxford_pet", pets)


def test_a_pet_that_trains_and_tests_is_refused(pets):
    with (pets / "annotations/test.txt").open("a") as file:
        file.write("beagle_1 2 2 1\n")
    with pytest.raises(ValueError, match=r"images/beagle_1\.jpg stands in the split lists more than once"):
        open_source("oxford_pet", pets)


def no_pets(root):
    (root / "annotations/test.txt").write_text("")


def no_scenes(root):
    for tree in ("leftImg8bit", "gtFine"):
        shutil.rmtree(root / tree / "val" / "lindau")


def no_rooms(root):
    everything = np.arange(1, 15, dtype=np.uint16)[:, None]
    savemat(root / "splits.mat", {"trainNdxs": everything, "testNdxs": np.zeros((0, 1), np.uint16)})


@pytest.mark.parametrize(("format", "empty"), [("oxford_pet", no_pets), ("cityscapes", no_scenes), ("nyuv2", no_rooms)])
def test_empty_official_split(format, empty, request):
    root = request.getfixturevalue({"oxford_pet": "pets"}.get(format, format))
    empty(root)
    with pytest.raises(ValueError, match=f"{root}: the official split 'test' is empty"):
        open_source(format, root)


@pytest.mark.parametrize(
    ("train", "test"), [(range(1, 10), range(10, 14)), (range(1, 11), range(10, 15)), (range(10), range(10, 14))]
)  # one image missing, one in both, counted from 0
def test_splits_that_do_not_fit_the_images(nyuv2, train, test):
    savemat(nyuv2 / "splits.mat", {"trainNdxs": np.array(train)[:, None], "testNdxs": np.array(test)[:, None]})
    with pytest.raises(ValueError, match=r"splits\.mat does not list each of the 14 images of nyu_depth_v2_label"):
        open_source("nyuv2", nyuv2)


@pytest.mark.parametrize(
    ("labels", "found"), [(np.zeros((3, 6, 9), np.uint16), r"\(3, 9, 6\) uint16"), (np.zeros((3, 6, 8)), "float64")]
)
def test_labels_that_do_not_fit_the_images(nyuv2, labels, found):
    write_nyuv2_mat(nyuv2 / "nyu_depth_v2_labeled.mat", np.zeros((3, 6, 8, 3), np.uint8), labels)
    with pytest.raises(ValueError, match=rf"labeled\.mat holds .*\(3, 3, 8, 6\) uint8.*{found}'}}, expected images"):
        open_source("nyuv2", nyuv2)


def test_a_mat_file_that_holds_something_else(nyuv2):
    with h5py.File(nyuv2 / "nyu_depth_v2_labeled.mat", "r+") as mat:
        del mat["labels"]
    with pytest.raises(ValueError, match=r"labeled\.mat is truncated or not NYU's labelled dataset .*labels"):
        open_source("nyuv2", nyuv2)


def test_a_mat_file_without_its_variable(nyuv2):
    shutil.copy(nyuv2 / "splits.mat", nyuv2 / "classMapping40.mat")
    with pytest.raises(ValueError, match=r"classMapping40\.mat has no variable 'mapClass'"):
        open_source("nyuv2", nyuv2)


def test_other_class_names_are_refused(nyuv2):
    mapping = loadmat(nyuv2 / "class13Mapping.mat")["classMapping13"]
    mapping["classNames"][0, 0][0, [0, 1]] = mapping["classNames"][0, 0][0, [1, 0]]
    savemat(nyuv2 / "class13Mapping.mat", {"classMapping13": mapping})
    with pytest.raises(ValueError, match=r"class13Mapping\.mat names the classes \['books', 'bed', .*, expected \["):
        open_source("nyuv2", nyuv2)


@pytest.mark.parametrize("name", ["nyu_depth_v2_labeled", "splits", "classMapping40", "class13Mapping"])
def test_wherever_a_mat_file_is_cut_it_is_named(nyuv2, name):
    "Or it is read as it was: what follows the last variable does not matter."
    file = nyuv2 / f"{name}.mat"
    whole, expected = file.read_bytes(), open_source("nyuv2", nyuv2)
    errors, lengths = 0, range(0, len(whole), max(1, len(whole) // 97))
    for length in lengths:
        file.write_bytes(whole[:length])
        try:
            assert open_source("nyuv2", nyuv2) == expected
        except ValueError as error:
            assert str(error).startswith(f"{file} is truncated or not ") or "has no variable" in str(error)
            errors += 1
    assert errors > 0.2 * len(lengths)


def test_a_broken_image_inside_the_mat_file_is_named(nyuv2, tmp_path):
    file = nyuv2 / "nyu_depth_v2_labeled.mat"
    with h5py.File(file) as mat:
        chunk = mat["images"].id.get_chunk_info(4)
    whole = bytearray(file.read_bytes())
    whole[512 + chunk.byte_offset + 20 : 512 + chunk.byte_offset + 40] = bytes(20)  # HDF5 counts behind MATLAB's header
    file.write_bytes(whole)
    with pytest.raises(ValueError, match=r"labeled\.mat, image 5, is truncated or broken"):
        prepare(open_source("nyuv2", nyuv2), tmp_path / "cache", 9, 12)
    assert not (tmp_path / "cache").exists()


def test_a_label_above_894_is_named(nyuv2, tmp_path):
    with h5py.File(nyuv2 / "nyu_depth_v2_labeled.mat", "r+") as mat:
        mat["labels"][6, 2, 3] = 895
    with pytest.raises(ValueError, match=r"labeled\.mat, image 7, holds \[895\], expected 0 to 894"):
        prepare(open_source("nyuv2", nyuv2), tmp_path / "cache", 9, 12)


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
    Image.fromarray(np.full((18, 24), 300, dtype=np.uint16)).save(file)


FAILURES = [
    ("images/05.png", cut, r"images/05\.png is truncated or not an image \(.*\): copy or export it again"),
    ("images/04.jpg", cut, r"images/04\.jpg is truncated or not an image"),
    ("labels/05.png", cut, r"labels/05\.png is truncated or not an image"),
    ("images/05.png", not_an_image, r"images/05\.png is truncated or not an image"),
    ("labels/05.png", empty, r"labels/05\.png is truncated or not an image"),
    ("labels/05.png", smaller, r"labels/05\.png is \(21, 18\) pixels .*, its image .*images/05\.png is \(24, 18\)"),
    ("labels/05.png", value_7, r"labels/05\.png holds \[7\], expected one of \[0, 1, 2, 255\]"),
    ("labels/05.png", colours, r"labels/05\.png holds \d+ colours that are no class: #"),
    ("labels/05.png", sixteen_bits, r"labels/05\.png holds \[300\], expected one of \[0, 1, 2, 255\]"),
    ("images/05.png", sixteen_bits, r"images/05\.png has mode I;16, expected 8 bits per channel"),
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


TRIMAP, SCENE = "annotations/trimaps/beagle_4.png", "train/bremen/bremen_000002_000019"
PHOTO, IDS = f"leftImg8bit/{SCENE}_leftImg8bit.png", f"gtFine/{SCENE}_gtFine_labelIds.png"


def zero(file):
    draw(file, 0, (0, 1, 2, 3), Image.open(file).size)


def license_plate(file):
    draw(file, 0, (7, 255))


@pytest.mark.parametrize(
    ("format", "name", "spoil", "message"),
    [
        ("oxford_pet", "images/beagle_4.jpg", cut, r"images/beagle_4\.jpg is truncated or not an image"),
        ("oxford_pet", TRIMAP, cut, r"trimaps/beagle_4\.png is truncated or not an image .*: fetch it again"),
        ("oxford_pet", TRIMAP, zero, r"trimaps/beagle_4\.png holds \[0\], expected one of \[1, 2, 3\]"),
        ("oxford_pet", TRIMAP, smaller, r"trimaps/beagle_4\.png is \(21, 18\) pixels .*, its image .*beagle_4\.jpg is"),
        ("cityscapes", PHOTO, cut, r"bremen_000002_000019_leftImg8bit\.png is truncated"),
        ("cityscapes", IDS, cut, r"bremen_000002_000019_gtFine_labelIds\.png is truncated"),
        ("cityscapes", IDS, license_plate, r"_labelIds\.png holds \[255\], expected one"),
        ("cityscapes", IDS, smaller, r"_labelIds\.png is \(21, 18\) pixels .*, its"),
        ("cityscapes", IDS, colours, r"_labelIds\.png has mode RGB, expected one 8-bit"),
    ],
)  # fmt: skip
def test_bad_file_of_a_real_format_is_named(format, name, spoil, message, request, tmp_path):
    root = request.getfixturevalue({"oxford_pet": "pets"}.get(format, format))
    spoil(root / name)
    with pytest.raises(ValueError, match=message):
        prepare(open_source(format, root), tmp_path / "cache", 9, 12)
    assert not (tmp_path / "cache").exists()


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
    with pytest.raises(ValueError, match=r"0003\.bmp and .*0003\.png share the label 0003: rename or remove one"):
        open_source("folder", folder)


def test_hidden_files_are_no_images(scenes_folder, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(scenes_folder, folder)
    (folder / "images/.DS_Store").write_bytes(b"x")
    assert len(open_source("folder", folder).pairs) == len(open_source("folder", scenes_folder).pairs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has neither names nor labels"),
        ("names: [a, b", "dataset.yaml is not valid YAML"),
        ("names: [a, b]\ncolours: [[0, 0, 0]]\nignore_index: 255", "has 2 names and 1 colours"),
        ("names: [a]\ncolours: [[0, 0, 0]]\nignore_index: 0", "has ignore_index 0, which is class 'a' in names"),
        ("names:\ncolours: [[0, 0, 0]]\nignore_index: 255", "has names None, expected a list"),
        ("names: [a]\ncolours: [1]\nignore_index: 255", r"has the colour 1, expected \[red, green, blue\]"),
        ("names: [a]\ncolours: [[0, 0, 0]]\nignore_index: 70000", "has ignore_index 70000, expected 0 to 65535"),
        ("names: [a]\ncolours: [[0, 0, 0]]\nignore_index:", "has ignore_index None, expected 0 to 65535"),
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


def test_no_picture_of_a_fetched_dataset_is_in_the_notebook():
    "Their images are their owners'; a notebook that was run beside a fetched dataset must not be committed."
    cells = json.loads((ROOT / "nbs/07_datasets.ipynb").read_text())["cells"]
    sections = [cell for cell in cells if "".join(cell["source"]).startswith("show(")]
    assert len(sections) == 3
    for cell in sections:
        printed = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        assert "does not exist: run `python -m pat.fetch" in printed, "".join(cell["source"])
