"A profile in one command: what it sees, what it writes, and that it trains and is checked."

import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from pat.new import epochs_for, main
from pat.params import ROOT, load_params
from pat.training import check_params


@pytest.fixture
def project(tmp_path):
    "The top of a project, without what the pipeline runs."
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "profiles").mkdir()
    return tmp_path


def folder(root, n=30, about=None, sizes=((48, 32),), label=lambda i, size: stripes(i, size)):
    "Photos and label maps."
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for i in range(n):
        size = sizes[i % len(sizes)]
        pixels = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{i:02d}.jpg")
        Image.fromarray(label(i, size)).save(root / f"labels/{i:02d}.png")
    if about:
        (root / "dataset.yaml").write_text(yaml.safe_dump(about))
    return root


def stripes(i, size, values=(0, 1, 2)):
    return np.array(values, np.uint8)[np.add.outer(np.arange(size[1]) * 0, np.arange(size[0]) + i) % len(values)]


NAMES = {"names": ["a", "b", "c"], "ignore_index": 255}


def test_a_profile_in_one_command(project, capsys):
    data = folder(project / "datasets/mine", about=NAMES)
    main(["mine", "--data", str(data), "--root", str(project)])
    file = project / "profiles/mine/params.yaml"
    params = check_params(file)
    assert params["datasets"]["mine"] == {
        "format": "folder", "path": "datasets/mine", "height": 32, "width": 48, "resize": "squeeze", "split": "paper",
    }  # fmt: skip
    assert list(params["runs"]) == ["mine-segnet-ce", "mine-segnet-pat"]
    assert params["train"]["epochs"] == epochs_for(24) == 100
    dvc = project / "profiles/mine/dvc.yaml"
    assert not dvc.is_symlink() and dvc.read_text() == (project / "dvc.yaml").read_text()
    told = capsys.readouterr().out
    assert "2 runs on 30 images of 3 classes, at 32x48 (squeeze), split paper" in told
    assert "dvc repro profiles/mine/dvc.yaml" in told and "python -m pat.datasets datasets/mine" in told
    sections = [line for line in file.read_text().splitlines() if line.startswith("  ") and ":" in line]
    written = [line for line in sections if not line.strip().startswith("mine-")]
    assert sum("#" in line for line in written) > 0.7 * len(written)  # nearly every line says what it is for


def test_photos_of_unlike_shapes_are_padded_and_an_own_split_is_taken(project):
    data = folder(project / "shapes", about=NAMES, sizes=((48, 32), (32, 48), (40, 40)))
    (data / "train.txt").write_text("".join(f"{i:02d}\n" for i in range(24)))
    (data / "test.txt").write_text("".join(f"{i:02d}\n" for i in range(24, 30)))
    main(["shapes", "--data", str(data), "--root", str(project)])
    dataset = load_params(project / "profiles/shapes/params.yaml")["datasets"]["shapes"]
    assert (dataset["resize"], dataset["split"]) == ("pad", "official")


@pytest.mark.parametrize("like", ["sample", "first"])
def test_everything_but_the_data_like_another_profile(project, like):
    data = folder(project / "mine", about=NAMES)
    main(["first", "--data", str(data), "--root", str(project)])
    main(["second", "--data", str(data), "--like", like, "--root", str(project)])
    theirs = load_params(project / ("params.yaml" if like == "sample" else "profiles/first/params.yaml"))
    ours = check_params(project / "profiles/second/params.yaml")
    for section in ("models", "train", "losses", "tables", "seeds"):
        assert ours[section] == theirs[section]
    assert list(ours["datasets"]) == ["second"] and len(ours["runs"]) == len(theirs["runs"])


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ((0, 255), {0: "class-0", 255: "class-1"}),
        ((0, 1, 255), {0: "class-0", 1: "class-1", 255: "void"}),
        ((1, 2, 3), {1: "class-0", 2: "class-1", 3: "class-2"}),
    ],
)
def test_a_folder_without_dataset_yaml_gets_a_draft(project, values, wanted, capsys):
    data = folder(project / "raw", label=lambda i, size: stripes(i, size, values))
    main(["raw", "--data", str(data), "--root", str(project)])
    draft = (data / "dataset.yaml").read_text()
    assert yaml.safe_load(draft) == {"labels": wanted} and "% of the pixels" in draft
    assert not (project / "profiles/raw").exists() and "put in the names" in capsys.readouterr().out
    (data / "dataset.yaml").write_text(draft.replace("class-0", "road"))
    main(["raw", "--data", str(data), "--root", str(project)])
    assert check_params(project / "profiles/raw/params.yaml")["datasets"]["raw"]["path"] == "raw"


def test_colours_are_drafted_as_colours(project):
    colours = np.array([[0, 0, 0], [200, 40, 40], [40, 200, 40]], np.uint8)
    data = folder(project / "raw", label=lambda i, size: colours[stripes(i, size)])
    main(["raw", "--data", str(data), "--root", str(project)])
    drafted = yaml.safe_load((data / "dataset.yaml").read_text())["labels"]
    assert drafted == {"#000000": "class-0", "#28c828": "class-1", "#c82828": "class-2"}


def test_palettes_in_another_order_in_each_file_are_drafted_by_colour(project):
    colours = np.array([[0, 0, 0], [200, 40, 40], [40, 200, 40]], np.uint8)
    data = folder(project / "raw")
    for i, file in enumerate(sorted((data / "labels").iterdir())):
        Image.fromarray(colours[stripes(i, (48, 32))]).convert("P", palette=Image.Palette.ADAPTIVE).save(file)
    main(["raw", "--data", str(data), "--root", str(project)])
    assert set(yaml.safe_load((data / "dataset.yaml").read_text())["labels"]) == {"#000000", "#28c828", "#c82828"}


def fails(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_what_is_refused_leaves_nothing(project):
    data = folder(project / "mine", about=NAMES)
    root = ["--root", str(project)]
    fails(["my data", "--data", str(data), *root], "the profile's name is 'my data', expected letters")
    fails(["sample", "--data", str(data), *root], "there is a profile sample already")
    fails(["mine", "--data", str(data), "--like", "sampl", *root], r"unknown profile 'sampl'. Did you mean 'sample'")
    (data / "labels/03.png").unlink()
    fails(["mine", "--data", str(data), *root], r"labels/03\.png does not exist")
    Image.fromarray(stripes(0, (48, 32))).save(data / "labels/03.png", "jpeg")
    (data / "dataset.yaml").unlink()
    fails(["mine", "--data", str(data), *root], r"labels/03\.png is stored as JPEG")
    assert not (data / "dataset.yaml").exists() and not list((project / "profiles").iterdir())


def test_a_photo_is_no_label_map(project):
    noise = lambda i, size: np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    data = folder(project / "mine", label=noise)
    fails(["mine", "--data", str(data), "--root", str(project)], "different values: no label maps, or not stored as")


@pytest.mark.slow
def test_command_line(project):
    folder(project / "mine", about=NAMES)
    command = [sys.executable, "-m", "pat.new", "mine", "--data", "mine"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert again.returncode == 1 and again.stderr.startswith("error: there is a profile mine already")
