"The look at what was read: what is said about a data set, what stops a training, the contact sheet, the command."

import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from miniatures import draw, make_camvid, make_cityscapes, make_folder, make_nyuv2, make_oxford_pet
from PIL import Image

from pat import annotation, checkup, datasets
from pat.checkup import (
    WIDTH,
    Measured,
    chosen_rows,
    contact_sheet,
    findings,
    measure,
    overlay,
    refuse,
    report,
    write_sheet,
)
from pat.datasets import likely_format, load_prepared, main, open_source, prepare, usual_size
from pat.params import ROOT

STRIPES = np.broadcast_to(np.arange(24) // 12, (18, 24))  # two classes, half of the image each
NAMES = ["background", "crack"]


def write(root, maps, names=None, images=None, **keys):
    "A folder with these label maps. The images are noise."
    for i, label in enumerate(maps):
        draw(root / "images" / f"{i:03d}.png", 1000 + i, "RGB")
        if images is not None:
            Image.fromarray(images[i]).save(root / "images" / f"{i:03d}.png")
        (root / "labels").mkdir(exist_ok=True)
        Image.fromarray(np.broadcast_to(label, (18, 24)).astype(np.uint8)).save(root / "labels" / f"{i:03d}.png")
    (root / "dataset.yaml").write_text(yaml.safe_dump({"names": names or NAMES} | keys))
    return root


def lists(root, **parts):
    "A split of one's own."
    for split, members in parts.items():
        (root / f"{split}.txt").write_text("".join(f"{i:03d}\n" for i in members))
    return root


def seen(root, tmp_path, **options):
    "What is measured in a folder, at the size of its files; with its prepared arrays."
    source = open_source("folder", root)
    options = {"height": 18, "width": 24, "split": "official" if source.official else "paper"} | options
    prepare(source, tmp_path / "cache", **options)
    data = load_prepared(tmp_path / "cache")
    return measure(data.meta, data.images, data.labels, datasets.image_names(source, root)), data


def texts(found, level):
    return "\n".join(finding.text for finding in found if finding.level == level)


def told(root, tmp_path, level="look", batch_size=1, **options):
    return texts(findings(seen(root, tmp_path, **options)[0], batch_size), level)


def command(capsys, *arguments):
    "Status and output of the command."
    try:
        main([*map(str, arguments)])
        status = 0
    except SystemExit as error:
        status = error.code
    return status, capsys.readouterr().out


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A working directory; whether temporary folders were removed is checked behind."
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "here"
    assert not [*temporary.iterdir()]


# ---------------------------------------------------------------- what is said


def test_nothing_is_said_of_a_sound_data_set(tmp_path):
    rng = np.random.default_rng(0)
    root = write(tmp_path / "mine", [rng.permutation(STRIPES.ravel()).reshape(18, 24) for _ in range(60)])
    found = findings(seen(root, tmp_path)[0], batch_size=4)
    assert [finding.level for finding in found] == ["note"] and "1 : 1" in found[0].text


def test_the_long_tail_is_said_in_numbers(tmp_path):
    label = np.zeros((18, 24), int)
    label[0, :4] = 1
    root = write(tmp_path / "mine", [label] * 10)
    assert "1 : 107, pixels of crack to pixels of background" in told(root, tmp_path, "note")


@pytest.mark.parametrize(
    ("labels", "keys", "words"),
    [
        ([0] * 10, {}, ["8 training images are 'background'", "nothing to learn", "other classes"]),
        ([2 - STRIPES] * 10, {"labels": {1: "crack", 2: "void"}}, ["'crack'", "(background), not void"]),
        ([0] * 9 + [1], {}, None),
        ([0] * 10, {"names": ["background"]}, ["with one class there is nothing to learn"]),
    ],
)
def test_one_class_only_stops(tmp_path, labels, keys, words):
    root = lists(write(tmp_path / "mine", labels, **keys), train=range(8), val=[8], test=[9])
    stops = told(root, tmp_path, "stop")
    if words is None:  # the second class is in the test images alone: there is one class to learn all the same
        words = ["8 training images are 'background'"]
    assert all(word in stops for word in words)
    with pytest.raises(ValueError, match="mine cannot be trained with: all labelled pixels"):
        refuse(findings(seen(root, tmp_path)[0]), "mine")


@pytest.mark.parametrize(("part", "what"), [("train", "learn"), ("val", "choose the best epoch"), ("test", "score")])
def test_a_part_without_a_label_stops(tmp_path, part, what):
    parts = {"train": [0, 1], "val": [2, 3], "test": [4, 5]}
    root = write(tmp_path / "mine", [255 if i in parts[part] else STRIPES for i in range(6)], ignore_index=255)
    stops = told(lists(root, **parts), tmp_path, "stop").splitlines()
    assert len(stops) == 1 and "no pixel of the 2" in stops[0] and f"nothing to {what}" in stops[0]


def test_classes_that_are_missing_somewhere(tmp_path):
    label = lambda *classes: np.array(classes)[np.arange(24) % len(classes)]
    labels = [label(0, 1, 2)] * 6 + [label(0, 1, 3)] * 5 + [label(0, 2, 3)] * 5
    root = write(tmp_path / "mine", labels, ["road", "car", "sign", "train", "boat"])
    said = told(lists(root, train=range(6), val=range(6, 11), test=range(11, 16)), tmp_path).splitlines()
    assert [line.split(". ")[0] for line in said if "classes" in line] == [
        "in no image: 1 of 5 classes (boat)",
        "in no training image, but in others: 1 of 5 classes (train)",
        "in training, but in no validation image: 1 of 5 classes (sign)",
        "in training, but in no test image: 1 of 5 classes (car)",
    ]


def test_a_class_in_an_image_of_no_part_is_in_no_image(tmp_path):
    root = write(tmp_path / "mine", [STRIPES] * 9 + [2], [*NAMES, "rust"])
    with warnings.catch_warnings(record=True):
        said = told(lists(root, train=range(7), val=[7], test=[8]), tmp_path)
    assert "in no image: 1 of 3 classes (rust)" in said


def test_images_that_are_mostly_void_are_named_the_worst_first(tmp_path):
    most, more = STRIPES.copy(), STRIPES.copy()
    most[:, :18], more[:, :14] = 255, 255
    root = write(tmp_path / "mine", [STRIPES] * 17 + [more, most, 255], ignore_index=255)
    said = told(root, tmp_path)
    assert "without a labelled pixel: 1 of 20 images (images/019.png)" in said
    assert "more than half of the area: 2 of 20 images (images/018.png: 75 %, images/017.png: 58.3 %)" in said
    assert "of all pixels have no class" not in said


def test_a_data_set_that_is_mostly_void(tmp_path):
    sparse = np.full((18, 24), 255)
    sparse[0, :12], sparse[0, 12:] = 0, 1
    root = write(tmp_path / "mine", [sparse] * 10, ignore_index=255)
    assert "94.4 % of all pixels have no class" in told(root, tmp_path)


def test_void_that_is_scored_is_a_class(tmp_path):
    label = np.where(STRIPES, 255, 0)
    root = write(tmp_path / "mine", [label] * 10, ["road"], ignore_index=255)
    prepare(open_source("folder", root, "class"), tmp_path / "cache", 18, 24)
    data = load_prepared(tmp_path / "cache")
    found = findings(measure(data.meta, data.images, data.labels))
    assert not texts(found, "stop") and "'void' is trained and scored as a class" in texts(found, "note")


@pytest.mark.parametrize(("images", "words"), [(3, "in fewer than 5 of the 8 training images"), (5, "")])
def test_a_class_in_few_images(tmp_path, images, words):
    root = write(tmp_path / "mine", [STRIPES] * images + [0] * (8 - images) + [STRIPES] * 10)
    said = told(lists(root, train=range(8), val=range(8, 13), test=range(13, 18)), tmp_path)
    assert words in said and ("crack: 3" in said) == bool(words)


def test_masks_that_were_shrunk_away(tmp_path):
    dot = np.zeros((18, 24), int)
    dot[4:8, 4:8] = 1
    root = write(tmp_path / "mine", [dot] * 10)
    assert "median mask" not in told(root, tmp_path)
    said = told(root, tmp_path, height=9, width=12)
    assert "median mask in training below 10 pixels: 1 of 2 classes (crack: 4). At 12 x 9" in said


@pytest.mark.parametrize(("batch_size", "said"), [(8, False), (9, True)])
def test_fewer_images_than_a_batch(tmp_path, batch_size, said):
    found = told(write(tmp_path / "mine", [STRIPES] * 10), tmp_path, batch_size=batch_size)
    assert (f"8 training images, and a batch is {batch_size}" in found) is said


def test_parts_of_a_few_images(tmp_path):
    root = write(tmp_path / "mine", [STRIPES] * 16)
    said = told(lists(root, train=range(7), val=range(7, 11), test=range(11, 16)), tmp_path)
    assert "4 validation images: too few" in said and "test images" not in said and "training images" not in said


def test_pictures_of_one_colour_and_label_maps_that_are_all_equal(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(10, 18, 24, 3), dtype=np.uint8)
    images[3] = 200
    said = told(write(tmp_path / "mine", [STRIPES] * 10, images=images), tmp_path)
    assert "of one colour: 1 image (images/003.png)" in said and "label maps of all 10 images are equal" in said


def test_near_duplicates_on_two_sides_are_counted_by_part(tmp_path):
    small = np.random.default_rng(0).integers(256, size=(12, 9, 12, 3), dtype=np.uint8)
    images = np.kron(small, np.ones((1, 2, 2, 1), np.uint8))
    images[8], images[9] = np.clip(images[0] * 1.0 + 9, 0, 255), np.clip(images[1] * 1.0 + 9, 0, 255)
    root = write(tmp_path / "mine", [STRIPES] * 12, images=images)
    said = told(lists(root, train=range(8), val=[10, 11], test=[8, 9]), tmp_path)
    assert "nearly the same picture in another part: 2 of the 2 test images (images/008.png as images/000.png)" in said
    assert "validation images (" not in said


def test_colours_that_cannot_be_told_apart(tmp_path):
    root = write(tmp_path / "mine", [STRIPES] * 10, colours=[[9, 9, 9], [9, 9, 9]])
    assert "drawn in one colour with another: 2 of 2 classes (background, crack)" in told(root, tmp_path)


def test_what_stops_comes_first_and_a_warning_is_said_once(tmp_path):
    root = write(tmp_path / "mine", [0] * 10)
    found = findings(seen(root, tmp_path)[0], 100, ["one picture has two names", "one picture has two names"])
    levels = [finding.level for finding in found]
    assert levels == sorted(levels, key=["stop", "look", "note"].index) and levels[0] == "stop"
    assert texts(found, "look").count("one picture has two names") == 1


# ---------------------------------------------------------------- frames and tiles


def test_the_frame_around_an_image_is_no_void(tmp_path):
    root = write(tmp_path / "mine", [np.where(STRIPES, 255, 0), *[STRIPES] * 9], ignore_index=255)
    measured, _ = seen(root, tmp_path, height=48, width=24, resize="pad")
    assert measured.void.tolist() == [216] + [0] * 9 and measured.counts.sum(1).tolist() == [216] + [432] * 9


def test_void_on_grey_is_void(tmp_path):
    images = np.full((10, 18, 24, 3), annotation.GREY, np.uint8)
    images[:, 0, 0] = np.arange(10)[:, None]  # else they are one picture
    root = write(tmp_path / "mine", [np.where(STRIPES, 255, 0), *[STRIPES] * 9], images=images, ignore_index=255)
    for resize in ("squeeze", "pad", "crop"):
        assert seen(root, tmp_path, height=18, width=24, resize=resize)[0].void.tolist() == [216] + [0] * 9


def test_a_frame_makes_no_pictures_alike(tmp_path):
    small = np.random.default_rng(0).integers(150, 240, size=(12, 9, 12, 3), dtype=np.uint8)  # brighter than the frame
    images = np.kron(small, np.ones((1, 2, 2, 1), np.uint8))
    images[9] = images[1] + 9
    root = lists(write(tmp_path / "mine", [STRIPES] * 12, images=images), train=range(8), val=[10, 11], test=[8, 9])
    for height, width in ((18, 24), (18, 240), (240, 24)):
        measured, _ = seen(root, tmp_path, height=height, width=width, resize="pad")
        assert measured.alike == [(1, 9)]


def test_the_tiles_of_an_image_are_counted_together(tmp_path):
    dot = np.zeros((18, 24), int)
    dot[7:9, 9:11] = 1  # where four tiles of 8 x 10 meet
    root = write(tmp_path / "mine", [dot] * 10, ignore_index=255)
    measured, data = seen(root, tmp_path, height=8, width=10, resize="crop")
    assert len(data.labels) == 90 and len(measured.images) == 10
    assert measured.counts.tolist() == [[428, 4]] * 10 and not measured.void.any()
    assert checkup.held_by(measured, "train").tolist() == [8, 8]
    found = findings(measured, batch_size=100)
    assert "72 tiles to train with, and a batch is 100" in texts(found, "look")
    assert "1 test image: too few" in texts(found, "look")
    assert "10 images in 90 tiles of 10 x 8 pixels (8 training, 1 validation" in report(measured, found, "mine")
    contact_sheet(measured, data.images, data.labels, "mine")


# ---------------------------------------------------------------- the report


@st.composite
def measured(draw):
    "Whatever may be counted, with names of any length."
    classes, images = draw(st.integers(1, 12)), draw(st.integers(3, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = [f"{i}{'n' * draw(st.integers(0, 60))}" for i in range(classes)]
    rows = rng.integers(0, 10 ** draw(st.integers(1, 7)), (images, classes))
    rows[rng.random(rows.shape) < draw(st.sampled_from([0, 0.5, 1]))] = 0
    cuts = draw(st.integers(1, images - 2))
    splits = {"train": np.arange(cuts), "val": np.array([cuts]), "test": np.arange(cuts + 1, images)}
    colours = rng.integers(0, 256, (classes, 3)).tolist()
    meta = {"names": names, "colours": colours, "ignore_index": 255}
    meta["splits"] = {split: members.tolist() for split, members in splits.items()}
    called = [f"images/{'x' * draw(st.integers(0, 120))}{i}.png" for i in range(images)]
    alike = [(0, images - 1)] if draw(st.booleans()) else []
    return Measured(meta, (images, 4, 5), called, splits, rows, rows, rng.integers(0, 99, images), alike, [0], images)


@given(measured(), st.sampled_from([None, 1, 64]))
def test_a_report_has_every_class_in_lines_of_bounded_width(case, batch_size):
    lines = report(case, findings(case, batch_size), "a folder with a long name").splitlines()
    in_table = lines[-len(case.names) :]
    assert sorted(line.split()[0] for line in in_table) == sorted(checkup.short(name) for name in case.names)
    assert all(len(line) <= WIDTH for line in lines)


@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_rows_on_a_sheet_are_different_and_hold_what_they_are_chosen_for(rows, classes, number, seed):
    counts = np.random.default_rng(seed).integers(-3, 4, (rows, classes)).clip(0)
    chosen = chosen_rows(counts, number)
    assert len({row for row, _ in chosen}) == len(chosen) == min(rows, number)
    for row, c in chosen:
        assert 0 <= row < rows and (c is None or counts[row, c] > 0)
    if counts.any():
        rarest = min((c for c in range(classes) if counts[:, c].any()), key=lambda c: counts[:, c].sum())
        assert chosen[0][1] == rarest and counts[chosen[0][0], rarest] == counts[:, rarest].max()


# ---------------------------------------------------------------- the contact sheet


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [1, 2, 20, 21, 60])
@pytest.mark.parametrize("size", [(16, 24), (40, 8), (8, 40)])
def test_a_sheet_can_be_drawn_of_any_number_of_classes_and_shape(tmp_path, classes, size):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, (12, *size), dtype=np.uint8)
    labels[0] = 255
    images = rng.integers(0, 256, (12, *size, 3), dtype=np.uint8)
    meta = {
        "names": [f"class {c}" for c in range(classes)], "colours": rng.integers(0, 256, (classes, 3)).tolist(),
        "ignore_index": 255, "splits": {"train": [*range(8)], "val": [8], "test": [9, 10, 11]},
    }  # fmt: skip
    case = measure(meta, images, labels)
    fig = contact_sheet(case, images, labels, "mine")
    texts = [text for text in fig.findobj(lambda part: hasattr(part, "get_text")) if text.get_text()]
    words = [text.get_text() for text in texts]
    assert all(name in words for name in meta["names"])
    assert fig.get_figwidth() == checkup.WIDE
    fig.draw_without_rendering()
    for text in (text for text in texts if not text.get_text().isdigit()):  # axes have numbers that are not shown
        box, page = text.get_window_extent(), fig.bbox
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text


@pytest.mark.filterwarnings("error")
def test_a_sheet_of_a_data_set_without_a_label(tmp_path):
    images, labels = np.zeros((3, 8, 8, 3), np.uint8), np.full((3, 8, 8), 255, np.uint8)
    meta = {"names": NAMES, "colours": [[0, 0, 0], [9, 9, 9]], "ignore_index": 255}
    case = measure(meta | {"splits": {"train": [0], "val": [1], "test": [2]}}, images, labels)
    files = write_sheet(contact_sheet(case, images, labels, "mine"), tmp_path / "sheet")
    with Image.open(files[0]) as sheet:
        assert sheet.width == 1440
    assert files[1].read_bytes().startswith(b"%PDF")


def test_an_overlay_shows_classes_in_their_colours_and_void_dark():
    image = np.full((1, 3, 3), 100, np.uint8)
    shown = overlay(image, np.array([[0, 1, 255]]), [[255, 0, 0], [0, 0, 255]])
    assert shown.dtype == np.uint8 and shown.tolist() == [[[185, 45, 45], [45, 45, 185], [35, 35, 35]]]


def test_a_sheet_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    images, labels = np.zeros((3, 8, 8, 3), np.uint8), np.zeros((3, 8, 8), np.uint8)
    meta = {"names": ["a"], "colours": [[9, 9, 9]], "ignore_index": 255}
    case = measure(meta | {"splits": {"train": [0], "val": [1], "test": [2]}}, images, labels)
    fig = contact_sheet(case, images, labels, "mine")
    (tmp_path / "sheet.png").write_text("old")
    monkeypatch.setattr(checkup.Figure, "savefig", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_sheet(fig, tmp_path / "sheet")
    assert (tmp_path / "sheet.png").read_text() == "old" and len([*tmp_path.iterdir()]) == 1


# ---------------------------------------------------------------- the command


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "make"),
    [("folder", make_folder), ("camvid", make_camvid), ("oxford_pet", make_oxford_pet),
     ("cityscapes", make_cityscapes), ("nyuv2", make_nyuv2)],
)  # fmt: skip
def test_the_command_knows_every_format_by_its_files(here, capsys, format, make):
    root = make(here.parent / "data")
    assert likely_format(root) == format
    status, output = command(capsys, root)
    assert status == 0 and f"format {format}, split {'paper' if format == 'folder' else 'official'}" in output
    assert sorted(file.name for file in here.iterdir()) == ["checkup-data.pdf", "checkup-data.png"]
    assert "contact sheet: checkup-data.png and .pdf" in output


def test_the_command_takes_a_split_of_ones_own(here, capsys):
    root = lists(write(here.parent / "mine", [STRIPES] * 10), train=range(6), val=[6, 7], test=[8, 9])
    assert "(6 training, 2 validation, 2 test)" in command(capsys, root)[1]
    assert "(8 training, 1 validation, 1 test)" in command(capsys, root, "--split", "paper")[1]


def test_the_command_writes_where_it_is_told(here, capsys):
    root = write(here.parent / "mine", [STRIPES] * 10)
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    status, output = command(capsys, root, "--out", "new/folder", "--height", 9)
    assert status == 0 and "12 x 9 pixels" in output and (here / "new/folder/checkup-mine.png").is_file()
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before


def test_the_command_writes_nothing_into_the_data(here, capsys, monkeypatch):
    root = write(here.parent / "mine", [STRIPES] * 10)
    for out in (root, root / "labels", root / "new"):
        status, _ = command(capsys, root, "--out", out)
        assert status == f"error: {out} lies in the data set, where nothing is written: name another folder with --out"
    monkeypatch.chdir(root)
    assert "name another folder with --out" in command(capsys, ".")[0]
    assert command(capsys, ".", "--out", here)[0] == 0 and (here / "checkup-mine.png").is_file()
    assert sorted(file.name for file in root.iterdir()) == ["dataset.yaml", "images", "labels"]


def test_the_command_reports_and_then_fails_where_nothing_can_be_learned(here, capsys):
    status, output = command(capsys, write(here.parent / "mine", [0] * 10))
    assert status.startswith("error: mine cannot be trained with: all labelled pixels of the 8 training images")
    assert "\nstop  all labelled pixels" in output and "median mask" in output
    assert (here / "checkup-mine.png").is_file()


@pytest.mark.slow
def test_the_command_says_what_prepare_warns_of(here, capsys):
    root = write(here.parent / "mine", [STRIPES] * 20)
    shutil.copy(root / "images/000.png", root / "images/001.png")
    status, output = command(capsys, root)
    assert status == 0 and "look  one picture has more than one name, 1 times" in output


def test_the_command_says_what_opening_warns_of_in_the_report_alone(here, capsys):
    root = lists(write(here.parent / "mine", [STRIPES] * 10), train=range(5), val=[6, 7], test=[8, 9])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        status, output = command(capsys, root)
    assert status == 0 and output.count("look  1 of 10 images of ") == 1
    assert "are in no part of its split" in " ".join(output.split())


def test_a_dataset_yaml_counts_before_the_layout_of_a_published_data_set(tmp_path):
    make_camvid(tmp_path / "data")
    assert likely_format(tmp_path / "data") == "camvid"
    (tmp_path / "data/dataset.yaml").touch()
    assert likely_format(tmp_path / "data") == "folder"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere does not exist: expected the folder of a data set"),
        (["mine", "--format", "camvit"], "unknown dataset format 'camvit'. Did you mean 'camvid'?"),
        (["mine", "--format", "camvid"], "train.txt does not exist"),
        (["mine", "--split", "official"], "this dataset has no official split"),
        (["mine", "--split", "mine"], "unknown split 'mine'"),
        (["mine", "--void", "class"], "has no void"),
        (["mine", "--resize", "stretch"], "unknown value of resize 'stretch'"),
        (["mine", "--height", "0"], "--height is 0, expected a whole number of at least 1"),
        (["mine", "--batch-size", "0"], "--batch-size is 0, expected a whole number of at least 1"),
        (["broken"], "003.png is truncated or not an image"),
        (["unknown"], "looks like no data set. Looked for dataset.yaml (folder); train.txt and trainannot (camvid)"),
        (["unknown"], "python -m pat.new NAME --data"),
        (["unknown", "--format", "folder"], "python -m pat.new NAME --data"),
    ],
)
def test_errors_of_the_command(here, capsys, arguments, words):
    for name in ("mine", "broken"):
        write(here / name, [STRIPES] * 10, labels={0: "background", 1: "crack"})
    image = here / "broken/images/003.png"
    image.write_bytes(image.read_bytes()[:200])
    (here / "unknown/images").mkdir(parents=True)
    before = sorted(here.rglob("*"))
    status, _ = command(capsys, *arguments)
    assert str(status).startswith("error: ") and words in status
    assert sorted(here.rglob("*")) == before


def test_the_size_of_the_look_keeps_the_usual_proportions(tmp_path):
    for i, size in enumerate([(600, 400)] * 5 + [(400, 600)] * 2):
        draw(tmp_path / "images" / f"{i}.png", i, "RGB", size)
        draw(tmp_path / "labels" / f"{i}.png", i, (0, 1), size)
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({"names": NAMES}))
    source = open_source("folder", tmp_path)
    assert usual_size(source) == (171, 256) and usual_size(source, width=60) == (40, 60)
    assert usual_size(source, longest=4000) == (400, 600)


def test_the_command_as_a_command(tmp_path):
    root = make_folder(tmp_path / "mine")
    ask = [sys.executable, "-W", "error::UserWarning:pat", "-m", "pat.datasets", root]
    done = subprocess.run(ask, cwd=tmp_path, text=True, capture_output=True, env=None)
    assert done.returncode == 0, done.stderr
    assert "mine: 10 images of 24 x 18 pixels (8 training, 1 validation, 1 test), 3 classes" in done.stdout
    assert "8 training images, and a batch is 8" not in done.stdout
    gone = subprocess.run([*ask[:-1], "gone"], cwd=tmp_path, text=True, capture_output=True)
    assert (gone.returncode, gone.stdout) == (1, "") and gone.stderr.startswith("error: ")


def test_training_does_not_draw():
    code = "import sys; import pat.datasets; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], text=True, capture_output=True).stdout == "False\n"


# ---------------------------------------------------------------- the pipeline


@pytest.mark.slow
def test_the_pipeline_prints_the_report_and_stops_where_nothing_can_be_learned(tmp_path):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["datasets"] = {"mine": {"format": "folder", "path": "mine", "height": 18, "width": 24, "split": "paper"}}
    params["train"]["batch_size"] = 9
    (tmp_path / "params.yaml").write_text("params_file: params.yaml\n" + yaml.safe_dump(params | {"params_file": 0})
                                          .replace("params_file: 0\n", ""))  # fmt: skip
    (tmp_path / "dvc.yaml").touch()
    notebook = Path(ROOT / "nbs/experiments/prepare.ipynb")
    call = ["papermill", "--no-progress-bar", "--log-output", notebook, "out.ipynb", "-r", "dataset", "mine",
            "-r", "params_file", "params.yaml"]  # fmt: skip
    stopped = "dataset 'mine' of params.yaml cannot be trained with"
    for label, words in ((STRIPES, "8 training images, and a batch is 9"), (0, stopped)):
        shutil.rmtree(tmp_path / "mine", ignore_errors=True)
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        write(tmp_path / "mine", [label] * 10)
        done = subprocess.run(call, cwd=tmp_path, text=True, capture_output=True)
        assert words in done.stdout + done.stderr, done.stderr
        assert (done.returncode == 0) is (tmp_path / "results").exists() is (label is STRIPES)
