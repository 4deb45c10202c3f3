"""The street scenes: the shipped data, their determinism, the two imbalances and the errors."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pat.streets import CLASSES, COLOURS, OBJECTS, build, draw_scene, main, mean_instances

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    "The data set with default arguments."
    return build(tmp_path_factory.mktemp("data") / "streets")


@pytest.fixture(scope="module")
def labels(streets):
    "Label maps (500, 64, 96) of the default data set."
    return np.stack([Image.open(path) for path in sorted((streets / "labels").iterdir())])


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def contents(folder):
    "{path below folder: bytes} of every file."
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def draw(scenes, seed=7, **options):
    "Label maps (scenes, 64, 96)."
    return np.stack([draw_scene(np.random.default_rng([seed, i]), **options)[1] for i in range(scenes)])


def share(labels, name):
    return (labels == CLASSES.index(name)).mean()


@pytest.mark.slow
def test_shipped_data_are_what_the_code_draws(streets):
    pin = yaml.safe_load((ROOT / "data.dvc").read_text())["outs"][0]["md5"]
    listing = (ROOT / "dvc-store" / "files" / "md5" / pin[:2] / pin[2:]).read_bytes()
    assert md5(listing) + ".dir" == pin
    shipped = {entry["relpath"]: entry["md5"] for entry in json.loads(listing)}
    drawn = {f"streets/{path}": md5(content) for path, content in contents(streets).items()}
    assert {path: code for path, code in shipped.items() if path.startswith("streets/")} == drawn


def test_layout(streets, labels):
    about = yaml.safe_load((streets / "dataset.yaml").read_text())
    assert about == {"names": CLASSES, "colours": COLOURS, "ignore_index": 255}
    names = [f"{i:04d}.png" for i in range(500)]
    for kind, mode in (("images", "RGB"), ("labels", "L")):
        assert sorted(path.name for path in (streets / kind).iterdir()) == names
        with Image.open(streets / kind / "0499.png") as picture:
            assert (picture.mode, picture.size) == (mode, (96, 64))
    assert set(np.unique(labels)) == set(range(len(CLASSES)))
    assert sum(path.stat().st_size for path in streets.rglob("*.png")) < 5e6  # bytes


def test_stated_shares(labels):
    for name in ("sign", "bicycle"):
        assert 0.0007 < share(labels, name) < 0.0015
    for k in range(len(CLASSES)):
        assert (labels == k).any((1, 2)).sum() >= 25  # scenes


def test_same_seed_same_bytes_whatever_the_count(streets, tmp_path):
    few = contents(build(tmp_path / "few", scenes=3))
    all_of_them = contents(streets)
    assert len(few) == 7
    assert all(all_of_them[path] == content for path, content in few.items())


def test_other_seed_other_scenes(tmp_path):
    one, other = (contents(build(tmp_path / str(seed), scenes=2, seed=seed)) for seed in (1, 2))
    assert all(one[path] != other[path] for path in one if path.endswith(".png"))


def test_other_size():
    image, label = draw_scene(np.random.default_rng(0), 48, 128)
    assert image.shape == (48, 128, 3) and label.shape == (48, 128)
    assert image.dtype == label.dtype == np.uint8


def test_image_and_label_agree():
    "Edges of the label are edges of the image: colours change more across them than elsewhere."
    across, within = [], []
    for i in range(10):
        image, label = draw_scene(np.random.default_rng([3, i]))
        change = np.abs(np.diff(image.astype(int), axis=1)).sum(-1)
        edge = label[:, 1:] != label[:, :-1]
        across.append(change[edge].mean())
        within.append(change[~edge].mean())
    assert np.mean(across) > 3 * np.mean(within)


def test_imbalance_factor_is_head_over_tail():
    for factor in (1, 30, 100):
        means = list(mean_instances(factor).values())
        assert means[0] / means[-1] == pytest.approx(factor)
        assert np.allclose(np.diff(np.log(means)), -np.log(factor) / 5)


def test_imbalance_factor_makes_the_tail_rarer():
    rare = [CLASSES.index(name) for name in ("person", "sign", "bicycle")]
    present = []
    for factor in (1, 10, 100):
        labels = draw(30, imbalance_factor=factor)
        present.append([(labels == k).any((1, 2)).mean() for k in rare])
    changes = np.diff(present, axis=0)
    changes[0, 0] = -1  # at a factor of 1 the near places run out, and fewer persons are drawn than asked for
    assert (changes < 0).all()


def test_mask_scale_enlarges_objects():
    small, normal, large = (draw(25, imbalance_factor=3, mask_scale=scale) for scale in (0.5, 1.0, 1.5))
    for name in OBJECTS:
        assert share(small, name) < share(normal, name) < share(large, name)


def test_existing_folder_stays_untouched(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine exists already: remove it first, or choose another folder"):
        build(folder, scenes=1)
    assert contents(tmp_path) == {"mine/precious.txt": b"mine"}


def test_nothing_is_left_of_a_build_that_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pat.streets.draw_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "streets", scenes=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("scenes", 0, "a whole number of at least 1"),
        ("scenes", 2.5, "a whole number of at least 1"),
        ("height", 8, "a whole number of at least 32"),
        ("width", 31, "a whole number of at least 32"),
        ("imbalance_factor", 0.5, "a number of at least 1"),
        ("imbalance_factor", float("nan"), "a number of at least 1"),
        ("mask_scale", 0, "a number of at least 0.1"),
        ("mask_scale", float("inf"), "a number of at least 0.1"),
        ("seed", -1, "a whole number of at least 0"),
    ],
)
def test_bad_argument(tmp_path, argument, value, expected):
    with pytest.raises(ValueError, match=f"^{argument} is {value}, expected {expected}$"):
        build(tmp_path / "streets", **{argument: value})
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path, capsys):
    main([str(tmp_path / "cli"), "--scenes", "2", "--mask-scale", "1.5", "--seed", "4"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "cli")
    assert contents(tmp_path / "cli") == contents(build(tmp_path / "api", scenes=2, mask_scale=1.5, seed=4))


def test_command_line_starts_at_the_root(tmp_path, capsys):
    main(["cli", "--root", str(tmp_path), "--scenes", "1"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "cli") and len(contents(tmp_path / "cli")) == 3
    with pytest.raises(SystemExit, match=r"^error: .*cli exists already: remove it first"):
        main(["cli", "--root", str(tmp_path), "--scenes", "1"])
    with pytest.raises(SystemExit, match=r"^error: scenes is 0, expected a whole number of at least 1$"):
        main(["other", "--root", str(tmp_path), "--scenes", "0"])
