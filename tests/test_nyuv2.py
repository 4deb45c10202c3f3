"""NYU Depth V2's class tables and split, held against the authors' files and 654 real label maps."""

import io
import json
import re
import shutil
import tarfile

import numpy as np
import pytest
from miniatures import write_nyuv2_mat
from PIL import Image
from scipy.io import loadmat, savemat

from pat.datasets import NYUV2, label_statistics, open_source, read_pair, split_indices
from pat.params import ROOT

REAL = ROOT / "../shared/data/nyuv2-labels"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/nyuv2-labels is not here")


@pytest.fixture(scope="module")
def label_maps():
    "The 654 official test label maps in 13 classes: number in the file name -> (480, 640) uint8, 0 is void."
    with tarfile.open(REAL / "nyuv2_test_class13.tgz") as archive:
        maps = ((file.name, np.array(Image.open(io.BytesIO(archive.extractfile(file).read())))) for file in archive)
        return {int(re.fullmatch(r"new_nyu_class13_(\d{4})\.png", name)[1]): label for name, label in maps}


def with_real_tables(root, images, labels):
    "NYU's layout with the authors' split and class tables, and these images; the split must fit their number."
    root.mkdir()
    for name in ("classMapping40.mat", "class13Mapping.mat"):
        shutil.copy(REAL / name, root)
    write_nyuv2_mat(root / "nyu_depth_v2_labeled.mat", images, labels)
    n = len(images)
    savemat(root / "splits.mat", {"trainNdxs": np.arange(1, n)[:, None], "testNdxs": np.array([[n]])})
    return root


def test_the_real_split_lists_the_real_test_maps(tmp_path, label_maps):
    root = with_real_tables(tmp_path / "nyuv2", np.zeros((1449, 2, 2, 3), np.uint8), np.zeros((1449, 2, 2), np.uint16))
    shutil.copy(REAL / "splits.mat", root)
    source = open_source("nyuv2", root)
    assert [source.pairs[i].position + 1 for i in source.official["test"]] == sorted(label_maps)
    split = split_indices(source, "official")
    assert [len(part) for part in split.values()] == [716, 79, 654] == [716, 79, len(label_maps)]  # 795 = 716 + 79
    assert not set(split["test"]) & {*split["train"], *split["val"]}


def test_the_real_tables_map_every_shared_name_to_itself(tmp_path):
    "894 labels and 13 classes have names of their own: where they share one, the tables must agree with it."
    root = with_real_tables(tmp_path / "nyuv2", np.zeros((3, 2, 2, 3), np.uint8), np.zeros((3, 2, 2), np.uint16))
    source, tables = open_source("nyuv2", root), loadmat(root / "classMapping40.mat")
    names894 = [str(cell[0]) for cell in tables["allClassName"].ravel()]
    assert sorted(source.ids) == list(range(895)) and source.ids[0] == 255
    assert set(source.ids.values()) == {*range(13), 255}
    named = {name: source.names[source.ids[label]] for label, name in enumerate(names894, 1)}
    shared = set(names894) & set(source.names)
    assert shared == set(NYUV2) - {"objects", "tv"}
    assert {name: named[name] for name in shared} == {name: name for name in shared}
    others = {"television": "tv", "books": "books", "book": "objects", "cabinet": "furniture", "door": "wall",
              "desk": "table", "pillow": "objects", "curtain": "window", "unknown": "objects"}  # fmt: skip
    assert {name: named[name] for name in others} == others


def test_the_classes_of_the_real_maps_are_in_the_order_of_the_names(label_maps):
    "Ceilings are above pictures, pictures above sofas, sofas above floors; walls cover most; objects are everywhere."
    rows = np.repeat(np.arange(480), 640)
    pixels, heights, images = np.zeros(14), np.zeros(14), np.zeros(14, int)
    for label in label_maps.values():
        assert label.shape == (480, 640) and label.max() <= 13
        counts = np.bincount(label.ravel(), minlength=14)
        heights += np.bincount(label.ravel(), rows, minlength=14)
        pixels, images = pixels + counts, images + (counts > 0)
    height = dict(zip(NYUV2, (heights / pixels)[1:], strict=True))
    assert sorted(height, key=height.get)[0] == "ceiling" and sorted(height, key=height.get)[-1] == "floor"
    upper, lower = ("picture", "window", "wall", "tv"), ("bed", "chair", "sofa", "table")
    assert height["ceiling"] < min(height[c] for c in upper) < max(height[c] for c in upper) < 240
    assert 240 < min(height[c] for c in lower) < max(height[c] for c in lower) < height["floor"]
    assert list(NYUV2)[pixels[1:].argmax()] == "wall"
    assert list(NYUV2)[images[1:].argmax()] == "objects" and images[0] == 654  # void is in every image


def test_real_maps_come_back_through_the_mat_file(tmp_path, label_maps):
    "Each pixel of six real maps gets one of the labels that its class stands for; reading must undo it."
    numbers, rng = sorted(label_maps)[::109], np.random.default_rng(0)
    maps = np.stack([label_maps[number] for number in numbers])
    tables = [loadmat(REAL / f"{name}.mat") for name in ("classMapping40", "class13Mapping")]
    to40, to13 = tables[0]["mapClass"][0], tables[1]["classMapping13"]["labels13"][0, 0][0]
    members = {c: [n for n in range(1, 895) if to13[to40[n - 1] - 1] == c] for c in range(1, 14)} | {0: [0]}
    labels = np.zeros(maps.shape, np.uint16)
    for c, choices in members.items():
        labels[maps == c] = rng.choice(choices, (maps == c).sum())
    images = rng.integers(256, size=(len(maps), 480, 640, 3)).astype(np.uint8)
    source = open_source("nyuv2", with_real_tables(tmp_path / "nyuv2", images, labels))
    for i, expected in enumerate(maps):
        image, label, _ = read_pair(source, i, 480, 640)
        np.testing.assert_array_equal(image, images[i])
        np.testing.assert_array_equal(label, np.where(expected == 0, 255, expected.astype(int) - 1))


def test_figure_2_draws_the_statistics_of_the_real_maps(label_maps):
    counts = np.array([np.bincount(label.ravel(), minlength=14) for _, label in sorted(label_maps.items())])
    known = json.loads((ROOT / "nbs/paper/nyuv2-labels.json").read_text())
    assert known["statistics"] == {"test": label_statistics(counts[:, 1:], 480 * 640)}
    assert known["names"] == list(NYUV2) and known["statistics"]["test"]["images"] == 654


@pytest.mark.skipif(not (ROOT / "datasets/nyuv2").is_dir(), reason="datasets/nyuv2 is not here: the 2.8 GB of NYUv2")
def test_the_real_labels_become_the_real_maps(label_maps):
    source = open_source("nyuv2", "datasets/nyuv2")
    assert [i + 1 for i in source.official["test"]] == sorted(label_maps)
    for i in source.official["test"]:
        _, label, _ = read_pair(source, i, 480, 640)
        np.testing.assert_array_equal(label, np.where(label_maps[i + 1] == 0, 255, label_maps[i + 1].astype(int) - 1))
