"The converters of datasets/get.py, on folders in the layouts of the originals."

import runpy

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pat.datasets import open_source, read_pair, split_indices
from pat.params import ROOT

get = runpy.run_path(str(ROOT / "datasets/get.py"))


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
    get["clothing"](original, tmp_path / "clothing")
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


def picture(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def test_a_sequence_is_cut_into_three_blocks(tmp_path):
    frame, label = np.full((512, 512, 3), 90, np.uint8), np.full((512, 512), 2, np.uint8)
    label[:256] = 4  # pathology in the upper half
    for sequence in ("patient1/seq1", "patient2/seq7"):
        for i in range(1, 11):
            picture(tmp_path / "vocalfolds/img" / sequence / f"{i:04}.png", frame)
            picture(tmp_path / "vocalfolds/annot" / sequence / f"{i:04}.png", label)
    get["vocalfolds"](tmp_path / "vocalfolds", tmp_path / "made")
    source = open_source("folder", tmp_path / "made")
    assert {part: len(members) for part, members in split_indices(source, "official").items()} == {
        "train": 12, "val": 4, "test": 4,
    }  # fmt: skip
    test = (tmp_path / "made/test.txt").read_text().split()
    assert test == ["patient1_seq1_0009", "patient1_seq1_0010", "patient2_seq7_0009", "patient2_seq7_0010"]
    image, read, *_ = read_pair(source, 0, 256, 256)
    assert image.shape == (256, 256, 3) and len(source.names) == 7
    assert (read[:128] == source.names.index("pathology")).all()
    assert (read[128:] == source.names.index("other tissue")).all()


def test_three_breeds_keep_their_official_split(tmp_path):
    names = {"trainval": ["Abyssinian_1", "Persian_1", "american_bulldog_10"], "test": ["Bengal_2", "Sphynx_3"]}
    trimap = np.ones((600, 300), np.uint8)
    trimap[:300] = 2
    for part, members in names.items():
        for name in members:
            picture(tmp_path / f"pets/images/{name}.jpg", np.zeros((600, 300, 3), np.uint8))
            picture(tmp_path / f"pets/annotations/trimaps/{name}.png", trimap)
        lines = "".join(f"{name} 1 1 1\n" for name in members)
        (tmp_path / f"pets/annotations/{part}.txt").write_text(lines)
    get["oxford_pet_part"](tmp_path / "pets", tmp_path / "part")
    assert (tmp_path / "part/annotations/trainval.txt").read_text() == "Abyssinian_1 1 1 1\namerican_bulldog_10 1 1 1\n"
    source = open_source("oxford_pet", tmp_path / "part")
    assert len(source.pairs) == 3 and Image.open(source.pairs[0].image).size == (160, 320)
    label = read_pair(source, 0, 320, 160)[1]
    assert (label[:160] == source.names.index("background")).all() and (label[160:] == source.names.index("pet")).all()


@pytest.mark.parametrize(
    ("writer", "told"),
    [("clothing", r"annotations/pixel-level holds no \.mat file"), ("vocalfolds", "holds no patient1/seq1"),
     ("oxford_pet_part", r"trainval\.txt")],
)  # fmt: skip
def test_a_wrong_folder_is_named(writer, told, tmp_path):
    with pytest.raises(FileNotFoundError, match=told):
        get[writer](tmp_path, tmp_path / "made")
