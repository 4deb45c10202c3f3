"The converter of the profile `clothing`, on a folder in the layout of the original."

import runpy

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pat.datasets import open_source, read_pair, split_indices
from pat.params import ROOT

get = runpy.run_path(str(ROOT / "profiles/clothing/get.py"))


@pytest.fixture
def original(tmp_path):
    "Ten photos of 600x900, in each a dress (14) on background (0), and pixels of a class that is void here (6)."
    (tmp_path / "ccp/photos").mkdir(parents=True)
    (tmp_path / "ccp/annotations/pixel-level").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(1, 11):
        label = np.zeros((900, 600), np.uint8)
        label[300:600, 200:400], label[:90] = 14, 6
        Image.fromarray(rng.integers(0, 256, (900, 600, 3), dtype=np.uint8)).save(tmp_path / f"ccp/photos/{i:04}.jpg")
        savemat(tmp_path / f"ccp/annotations/pixel-level/{i:04}.mat", {"groundtruth": label})
    return tmp_path / "ccp"


def test_it_is_read_with_its_split(original, tmp_path):
    get["convert"](original, tmp_path / "clothing")
    source = open_source("folder", tmp_path / "clothing")
    assert {part: len(members) for part, members in split_indices(source, "official").items()} == {
        "train": 6, "val": 2, "test": 2,
    }  # fmt: skip
    assert (tmp_path / "clothing/test.txt").read_text() == "0005\n0010\n"
    image, label, *_ = read_pair(source, 0, 384, 256)
    assert image.shape == (384, 256, 3) and len(source.names) == 42
    dress = source.names.index("dress")
    assert label[192, 128] == dress and label[10, 10] == 255 and label[380, 10] == source.names.index("background")
    assert (label == dress).mean() == pytest.approx(1 / 9, rel=0.02)


def test_a_folder_without_annotations_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"annotations/pixel-level holds no \.mat file"):
        get["convert"](tmp_path, tmp_path / "clothing")
