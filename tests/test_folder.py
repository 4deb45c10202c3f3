"Your own folder: what lies in it, links, splits of one's own, groups, and pictures that are there twice."

import itertools
import json
import os
import shutil
import warnings

import numpy as np
import pytest
import yaml
from miniatures import COLOURS, NAMES, draw, make_camvid, make_cityscapes, make_folder
from PIL import Image

from pat.datasets import Source, load_prepared, open_source, prepare, random_parts, split_indices
from pat.datasets import draw as draw_parts
from pat.duplicates import near_duplicates, picture_hashes, same_pictures
from pat.params import ROOT

CAMVID = ROOT / "../shared/data/camvid"


def scene(root, name, seed=None, image="png", label="png", parts=("images", "labels"), suffix=""):
    "One image and its label map, below the folders `parts`."
    seed = sum(map(ord, str(root.name) + name)) if seed is None else seed
    draw(root / parts[0] / f"{name}.{image}", seed, "RGB")
    draw(root / parts[1] / f"{name}{suffix}.{label}", seed)


def about(root, **keys):
    "A dataset.yaml."
    root.mkdir(parents=True, exist_ok=True)
    meta = {"names": NAMES, "colours": COLOURS, "ignore_index": 255} | keys
    (root / "dataset.yaml").write_text(yaml.safe_dump(meta))
    return root


@pytest.fixture
def mine(tmp_path):
    "Twenty scenes, 000 to 019."
    root = about(tmp_path / "mine")
    for i in range(20):
        scene(root, f"{i:03d}", i)
    return root


def opened(root):
    return open_source("folder", root)


def stems(source, members=None):
    return [source.pairs[i].image.stem for i in (range(len(source.pairs)) if members is None else members)]


def parts_of(root, split="official"):
    source = opened(root)
    return {part: stems(source, members) for part, members in split_indices(source, split).items()}


def write_lists(root, encoding="utf-8", end="\n", **lists):
    for split, lines in lists.items():
        (root / f"{split}.txt").write_bytes(end.join(lines).encode(encoding))


def names(*members):
    return [f"{i:03d}" for i in members]


# --- what lies in the folder


def test_images_in_folders_have_their_labels_in_folders_of_the_same_name(tmp_path):
    root = about(tmp_path / "mine")
    for name in ("film1/001", "film1/002", "film2/001", "000", "a.b/c.d"):
        scene(root, name, image="jpg")
    pairs = [[part.relative_to(root).as_posix() for part in pair[:2]] for pair in opened(root).pairs]
    assert pairs == [
        ["images/000.jpg", "labels/000.png"],
        ["images/a.b/c.d.jpg", "labels/a.b/c.d.png"],
        ["images/film1/001.jpg", "labels/film1/001.png"],
        ["images/film1/002.jpg", "labels/film1/002.png"],
        ["images/film2/001.jpg", "labels/film2/001.png"],
    ]


@pytest.mark.parametrize("ending", ["png", "PNG", "bmp", "tif", "TIFF", "gif", "pgm"])
def test_a_label_map_may_be_of_any_format_without_loss(tmp_path, ending):
    root = about(tmp_path / "mine")
    scene(root, "a", label=ending)
    assert opened(root).pairs[0].label.name == f"a.{ending}"


def test_two_labels_of_one_image_are_refused(mine):
    shutil.copy(mine / "labels/003.png", mine / "labels/003.bmp")
    with pytest.raises(ValueError, match=r"labels/003\.bmp and .*labels/003\.png both are the label of 003: rename or"):
        opened(mine)


def test_label_suffix(tmp_path):
    root = about(tmp_path / "mine", label_suffix="_mask")
    for name in ("1", "film/10"):
        scene(root, name, suffix="_mask")
    assert [pair.label.name for pair in opened(root).pairs] == ["1_mask.png", "10_mask.png"]
    scene(root, "2")
    with pytest.raises(
        FileNotFoundError, match=r"labels/2_mask\.png does not exist: it is the label of .*images/2\.png"
    ):
        opened(root)


PASSING = (
    ".DS_Store", "._000.png", "Thumbs.db", "thumbs.db", "desktop.ini", "Desktop.ini", "@eaDir/000.png/a.jpg",
    ".ipynb_checkpoints/000-checkpoint.png", "__MACOSX/._000.png", "#recycle/1.png", "000.json", "000.xml", "000.txt",
    "classes.txt", "annotations.csv", "data.yaml", "000.JSON", "labels.cache", "film/Thumbs.db", "000.xmp",
)  # fmt: skip


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_what_systems_and_label_tools_leave_is_passed_over(mine, kind, name):
    (mine / kind / name).parent.mkdir(parents=True, exist_ok=True)
    (mine / kind / name).write_bytes(b"x")
    assert len(opened(mine).pairs) == 20


@pytest.mark.parametrize("name", ["7.heic", "7.cr2", "7.mp4", "7.mpg", "7.npy", "7.zip", "7.png~", "7.dcm", "7.eps"])
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_file_that_pillow_does_not_read_is_named(mine, kind, name):
    (mine / kind / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"{kind}/{name}: no image that Pillow reads ends in .*: save it as PNG, or"):
        opened(mine)


def test_a_file_without_ending_is_named(mine):
    (mine / "images/000.png").rename(mine / "images/000")
    with pytest.raises(ValueError, match=r"images/000: .*ends in nothing.*give it the ending that it lacks"):
        opened(mine)


def test_labels_without_image_are_named_and_counted(mine):
    for i in (1, 3, 5, 7):
        (mine / f"images/{i:03d}.png").unlink()
    expected = r"4 of 20 labels have no image: .*001\.png, .*003\.png, .*005\.png and 1 more\. Copy their images to"
    with pytest.raises(FileNotFoundError, match=expected):
        opened(mine)


def test_images_without_label_are_named_and_counted(mine):
    for i in (1, 3, 5, 7):
        (mine / f"labels/{i:03d}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"4 of 20 images have no label \(001, 003, 005 and 1 more\)"):
        opened(mine)


@pytest.mark.parametrize(
    ("label", "hint"),
    [
        ("{}_mask.png", "write `label_suffix: _mask` into"),
        ("{}.jpg.png", "write `label_suffix: .jpg` into"),
        ("{} copy.png", "write `label_suffix: ' copy'` into"),
        ("{}1.png", "write `label_suffix: '1'` into"),
    ],
)
def test_a_suffix_that_all_labels_have_is_told_as_the_line_to_write(tmp_path, label, hint):
    root = about(tmp_path / "mine")
    for name in ("a", "ab", "film/a"):
        scene(root, name)
        (root / f"labels/{name}.png").rename(root / "labels" / label.format(name))
    with pytest.raises(FileNotFoundError) as error:
        opened(root)
    assert hint in str(error.value)
    line = hint.split("`")[1]
    (root / "dataset.yaml").write_text((root / "dataset.yaml").read_text() + line + "\n")
    assert len(opened(root).pairs) == 3


def test_a_suffix_that_not_all_labels_have_is_not_told(mine):
    (mine / "labels/003.png").rename(mine / "labels/003_mask.png")
    with pytest.raises(FileNotFoundError, match=r"003.*The nearest name there is 003_mask\.") as error:
        opened(mine)
    assert "label_suffix" not in str(error.value)


def test_a_label_suffix_too_many_is_told(mine):
    about(mine, label_suffix="_mask")
    with pytest.raises(FileNotFoundError, match=r"called as their image and nothing: write `label_suffix: ''`"):
        opened(mine)


def test_a_label_in_other_capitals_is_told(tmp_path):
    root = about(tmp_path / "mine")
    scene(root, "IMG_1")
    (root / "labels/IMG_1.png").rename(root / "labels/img_1.png")
    with pytest.raises(FileNotFoundError, match="There is img_1: write both names with the same capitals"):
        opened(root)


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_names_that_differ_in_capitals_only_are_refused(tmp_path, kind):
    root = about(tmp_path / "mine")
    scene(root, "a")
    draw(root / kind / "A.png", 1)
    if len(list((root / kind).iterdir())) == 1:
        pytest.skip("this disk holds one of the two")
    with pytest.raises(ValueError, match=r"A\.png and .*a\.png have names that differ in capitals only"):
        opened(root)


def test_an_accent_in_one_or_two_characters_is_the_same_name(tmp_path):
    root = about(tmp_path / "mine")
    scene(root, "stra\N{LATIN SMALL LETTER E WITH ACUTE}", 1)
    (root / "images/straé.png").rename(root / "images/stra\N{LATIN SMALL LETTER E}\N{COMBINING ACUTE ACCENT}.png")
    assert len(opened(root).pairs) == 1


def test_what_a_dataset_has_to_hold_is_said(tmp_path):
    root = about(tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match=r"images does not exist: expected a folder of images.*train/images"):
        opened(root)
    draw(root / "images/a.png", 0, "RGB")
    with pytest.raises(FileNotFoundError, match="labels does not exist: expected a folder of label maps"):
        opened(root)


# --- links


@pytest.mark.parametrize("link", ["images", "labels", "images/film", "notes", "images/a/b"])
def test_a_linked_folder_is_refused_with_its_target(mine, tmp_path, link):
    target = tmp_path / "disk"
    if (mine / link).exists():
        (mine / link).rename(target)
    target.mkdir(exist_ok=True)
    (mine / link).parent.mkdir(parents=True, exist_ok=True)
    (mine / link).symlink_to(target)
    expected = (
        rf"mine/{link} is a link to .*disk, and DVC does not see .*: give the real folder as `path` in params.yaml"
    )
    with pytest.raises(ValueError, match=expected):
        opened(mine)


@pytest.mark.parametrize(("format", "make"), [("camvid", make_camvid), ("cityscapes", make_cityscapes)])
def test_a_linked_folder_of_a_published_dataset_is_refused(tmp_path, format, make):
    root = make(tmp_path / "set")
    folder = next(path for path in sorted(root.iterdir()) if path.is_dir())
    folder.rename(tmp_path / "disk")
    folder.symlink_to(tmp_path / "disk")
    with pytest.raises(ValueError, match=r"is a link to .*disk, and DVC does not see"):
        open_source(format, root)


def test_linked_files_and_a_linked_path_are_read(mine, tmp_path):
    "DVC follows both."
    (mine / "images/000.png").rename(tmp_path / "elsewhere.png")
    (mine / "images/000.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "path").symlink_to(mine)
    assert len(opened(tmp_path / "path").pairs) == 20


def test_a_link_to_a_file_that_is_gone_is_named(mine):
    (mine / "labels/003.png").unlink()
    (mine / "labels/003.png").symlink_to("gone.png")
    with pytest.raises(FileNotFoundError, match=r"labels/003\.png is a link to gone\.png, which is not there: put"):
        opened(mine)


def test_hidden_links_do_not_matter(mine, tmp_path):
    (mine / ".venv").symlink_to(tmp_path)
    assert len(opened(mine).pairs) == 20


def test_a_folder_that_may_not_be_read_is_an_error(mine, monkeypatch):
    def scandir(path, scan=os.scandir):
        if str(path).endswith("film"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    (mine / "images/film").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="images/film"):
        opened(mine)


# --- a split of one's own: lists


def test_lists_are_read(mine):
    write_lists(mine, train=names(*range(16)), val=names(16, 17), test=names(19, 18))
    assert split_indices(opened(mine), "official") == {"train": [*range(16)], "val": [16, 17], "test": [18, 19]}


@pytest.mark.parametrize(
    "line",
    ["film 1/a", "film 1/a.jpg", "images/film 1/a.jpg", "./images/film 1/a", "images\\film 1\\a.jpg",
     "/home/me/my data/images/film 1/a.jpg", "C:\\data\\images\\film 1\\a.jpg", "  film 1/a  ", '"film 1/a.jpg"',
     "film 1/a.jpg labels/film 1/a.png", "images/film 1/a.jpg\tlabels/film 1/a.png", "film 1/a,film 1/a.png",
     "/x/images/film 1/a.jpg /x/labels/film 1/a.png", "film 1/a # dark"],
)  # fmt: skip
def test_a_line_is_understood_as_people_write_it(tmp_path, line):
    root = about(tmp_path / "mine")
    for name in ("film 1/a", "b", "c"):
        scene(root, name, image="jpg")
    write_lists(root, train=["b"], val=["c"], test=[line])
    assert parts_of(root) == {"train": ["b"], "val": ["c"], "test": ["a"]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_of_any_system(tmp_path, encoding, end):
    root = about(tmp_path / "mine")
    for name in ("ä ö", "b", "c"):
        scene(root, name)
    bom = "\ufeff" if encoding == "utf-16-le" else ""
    write_lists(root, encoding, end, train=[f"{bom}# mine", "", "ä ö"], val=[f"{bom}b", ""], test=[f"{bom}c"])
    assert parts_of(root) == {"train": ["ä ö"], "val": ["b"], "test": ["c"]}


def test_a_list_in_another_encoding_is_named(tmp_path):
    root = about(tmp_path / "mine")
    scene(root, "ä")
    write_lists(root, "latin-1", train=["# none", "ä"])
    with pytest.raises(ValueError, match=r"train\.txt is not UTF-8 .*in line 2.: save it with the encoding UTF-8"):
        opened(root)


@pytest.mark.parametrize(
    "line", ["020", "000.jpg", "images/020.png", "000 1", "000 -1", "000 labels/001.png", "000 001"]
)
def test_a_line_that_names_no_image_is_an_error_with_its_place(mine, line):
    write_lists(mine, train=["# train", "001", line], test=["002"])
    with pytest.raises(ValueError, match=rf"train\.txt:3 reads '{line}', expected the name of an image below images/"):
        opened(mine)


def test_the_nearest_name_is_told(mine):
    write_lists(mine, train=["00l"], test=["002"])
    with pytest.raises(ValueError, match=r"train\.txt:1 reads '00l', .*Did you mean '0\d"):
        opened(mine)


def test_a_name_that_begins_like_a_comment(tmp_path):
    root = about(tmp_path / "mine")
    for name in ("#1", "b", "c"):
        scene(root, name)
    write_lists(root, train=["#1", "# 2"], val=["b"], test=["c"])
    assert parts_of(root)["train"] == ["#1"]


@pytest.mark.parametrize("twice", ["003", "images/003.png"])
def test_an_image_in_two_lists_or_twice_in_one_is_refused(mine, twice):
    write_lists(mine, train=names(1, 3), test=["002", twice])
    with pytest.raises(ValueError, match=r"test\.txt:2 names 003\.png, as does .*train\.txt:2: test images must not"):
        opened(mine)
    write_lists(mine, train=[*names(1, 3, 4), twice], test=["002"])
    with pytest.raises(ValueError, match=r"train\.txt:4 reads '.*003.*', as line 2 does: remove one"):
        opened(mine)


def test_images_in_no_list_are_counted(mine):
    write_lists(mine, train=names(*range(10)), val=names(11), test=names(12))
    with pytest.warns(
        UserWarning, match=r"8 of 20 images of .*mine are in no part.*010\.png, 013\.png, 014\.png and 5 m"
    ):
        opened(mine)


def test_an_empty_list_is_an_error(mine):
    write_lists(mine, train=names(*range(20)), val=["# later"], test=names())
    with pytest.raises(ValueError, match="mine: the official split 'val' is empty"):
        opened(mine)


def test_without_val_a_tenth_of_train_validates(mine):
    write_lists(mine, train=names(*range(15)), test=names(*range(15, 20)))
    parts = parts_of(mine)
    assert [*map(len, parts.values())] == [14, 1, 5] and parts["test"] == names(*range(15, 20))


def test_without_test_val_tests(mine):
    write_lists(mine, train=names(*range(15)), val=names(*range(15, 20)))
    with pytest.warns(UserWarning, match="no test images: its val tests, and a tenth of train validates"):
        parts = parts_of(mine)
    assert [*map(len, parts.values())] == [14, 1, 5] and parts["test"] == names(*range(15, 20))


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_one_list_alone_is_no_split(mine, part):
    write_lists(mine, **{part: names(*range(20))})
    with pytest.raises(ValueError, match=rf"this dataset's split has {part} alone\. Expected train and test: lists"):
        split_indices(opened(mine), "official")


def test_no_split_says_the_three_ways(mine):
    with pytest.raises(
        ValueError, match=r"no official split, expected split: paper, or lists .*or folders .*groups in"
    ):
        split_indices(opened(mine), "official")


def test_a_split_of_ones_own_that_paper_does_not_use(mine, tmp_path):
    write_lists(mine, train=names(*range(16)), val=names(16, 17), test=names(18, 19))
    with pytest.warns(UserWarning, match=r"a split of its own \(train, val, test\).*write split: official to use it"):
        split_indices(opened(mine), "paper")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split_indices(open_source("camvid", make_camvid(tmp_path / "CamVid", (("train", 20), ("val", 2), ("test", 2)))))
        split_indices(opened(mine), "official")


# --- a split of one's own: folders


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
@pytest.mark.parametrize("inside", [False, True])
def test_folders_are_read(tmp_path, val, inside):
    root = about(tmp_path / "mine")
    for part, members in (("train", "abc"), (val, "d"), ("test", "ef")):
        for name in members:
            scene(
                root, f"film/{name}", parts=[f"{k}/{part}" if inside else f"{part}/{k}" for k in ("images", "labels")]
            )
    assert parts_of(root) == {"train": ["a", "b", "c"], "val": ["d"], "test": ["e", "f"]}


def test_the_same_name_in_two_folders_is_another_image(tmp_path):
    root = about(tmp_path / "mine")
    for seed, part in enumerate(("train", "val", "test")):
        scene(root, "1", seed, parts=(f"{part}/images", f"{part}/labels"))
    assert split_indices(opened(root), "official") == {"train": [0], "val": [1], "test": [2]}


def test_images_beside_the_folders_of_a_split_are_counted(tmp_path):
    root = about(tmp_path / "mine")
    for name in ("train/a", "val/b", "test/c", "d", "film/e"):
        scene(root, name)
    with pytest.warns(UserWarning, match=r"2 of 5 images .*d\.png, film/e\.png"):
        assert parts_of(root)["test"] == ["c"]


@pytest.mark.parametrize("part", ["train", "test"])
def test_films_are_no_split(tmp_path, part):
    root = about(tmp_path / "mine")
    for name in (f"{part}/a", "film/b"):
        scene(root, name)
    assert opened(root).official is None


def test_what_is_ambiguous_is_refused(tmp_path):
    root = about(tmp_path / "mine")
    for part in ("train", "test"):
        scene(root, "a", parts=(f"{part}/images", f"{part}/labels"))
    write_lists(root, train=["a"])
    with pytest.raises(ValueError, match=r"has the lists train\.txt and folders for train, test: which split is meant"):
        opened(root)
    (root / "train.txt").unlink()
    scene(root, "b")
    with pytest.raises(ValueError, match=r"holds images and .*train/images, so which are meant is open"):
        opened(root)
    shutil.rmtree(root / "images")
    scene(root, "a", parts=("valid/images", "valid/labels"))
    scene(root, "a", parts=("val/images", "val/labels"))
    with pytest.raises(ValueError, match=r"val and .*valid are both the part val of the split: join them"):
        opened(root)


def test_an_empty_folder_of_a_split_is_an_error(tmp_path):
    root = about(tmp_path / "mine")
    for part in ("train", "test"):
        scene(root, "a", parts=(f"{part}/images", f"{part}/labels"))
    for kind in ("images", "labels"):
        (root / "val" / kind).mkdir(parents=True)
    with pytest.raises(ValueError, match="the official split 'val' is empty"):
        opened(root)


# --- groups


def films(root, sizes, **keys):
    "Films of `sizes` frames, named p1_0, p1_1, ..."
    about(root, **keys)
    for film, frames in enumerate(sizes):
        for frame in range(frames):
            scene(root, f"p{film}_{frame}", 100 * film + frame)
    return root


def sides(root, split="paper", group=lambda stem: stem.split("_")[0]):
    return {part: {group(stem) for stem in members} for part, members in parts_of(root, split).items()}


def test_groups_are_never_torn_apart(tmp_path):
    root = films(tmp_path / "mine", [3] * 10, groups=r"^(p\d+)_")
    parts = sides(root)
    assert [*map(len, parts.values())] == [8, 1, 1] and len(set.union(*parts.values())) == 10


def test_groups_of_unlike_sizes_come_as_near_as_they_can(tmp_path):
    root = films(tmp_path / "mine", [2, 30, 2, 2, 2, 2], groups="^p[0-9]")
    assert [*map(len, parts_of(root, "paper").values())] == [32, 4, 4]


def test_images_of_no_group_are_drawn_as_ever():
    single = Source(NAMES, COLOURS, [None] * 701, {0: 0}, groups=[str(i) for i in range(701)])
    assert split_indices(single) == split_indices(Source(NAMES, COLOURS, [None] * 701, {0: 0}))
    assert draw_parts(single, range(100, 200), (0.9, 0.1), 3) == random_parts(range(100, 200), (0.9, 0.1), 3)


@pytest.mark.parametrize("sizes", [[6], [3, 3]])
def test_too_few_groups(tmp_path, sizes):
    root = films(tmp_path / "mine", sizes, groups="^p[0-9]")
    with pytest.raises(
        ValueError, match=rf"{len(sizes)} groups are too few to split 0\.8 / 0\.1 / 0\.1, expected at least 3"
    ):
        parts_of(root, "paper")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"^q", r"dataset\.yaml has groups '\^q', which finds nothing in 6 of 6 images: p0_0\.png, p0_1\.png"),
        (r"p1", "finds nothing in 3 of 6 images"),
        (r"p(x)?", "finds nothing in 6 of 6 images"),
        (r"(p", r"dataset\.yaml has groups '\(p', which is no regular expression"),
    ],
)
def test_a_pattern_that_does_not_do(tmp_path, pattern, message):
    with pytest.raises(ValueError, match=message):
        opened(films(tmp_path / "mine", [3, 3], groups=pattern))


def test_a_folder_can_be_the_group(tmp_path):
    root = about(tmp_path / "mine", groups="^(.+)/")
    for film, frame in itertools.product("abcde", range(4)):
        scene(root, f"{film}/{frame}")
    assert set(opened(root).groups) == set("abcde")


def test_groups_hold_in_the_part_that_is_drawn_from_train(tmp_path):
    root = films(tmp_path / "mine", [2] * 12, groups=r"^(p\d+)_")
    frames = lambda films: [f"p{film}_{frame}" for film in films for frame in range(2)]
    write_lists(root, train=frames(range(10)), test=frames((10, 11)))
    parts = sides(root, "official")
    assert [*map(len, parts.values())] == [9, 1, 2] and not parts["train"] & parts["val"]


def test_a_group_on_two_sides_of_ones_own_split_is_named(tmp_path):
    root = films(tmp_path / "mine", [2] * 3, groups=r"^(p\d+)_")
    write_lists(root, train=["p0_0", "p0_1", "p1_0"], val=["p2_0", "p2_1"], test=["p1_1"])
    expected = (
        r"groups stand in two parts of the split, 1 of 3 \(p1\): p1 in train \(.*p1_0\.png\) and test \(.*p1_1\.png\)"
    )
    with pytest.raises(ValueError, match=expected):
        split_indices(opened(root), "official")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["p{}_0", "p{}_0.png", "images/p{}_0.png"])
def test_groups_of_a_table(tmp_path, mark, encoding, name):
    root = films(tmp_path / "mine", [1] * 4, groups={"file": "patients.csv", "column": "patient"})
    rows = [["scan", "age", "patient"], *([name.format(i), str(i), f"Müller, {i % 3}"] for i in range(4))]
    rows += [["another", "7", "x"], ["", "", ""]]
    text = "\r\n".join(mark.join(f'"{cell}"' for cell in row) for row in rows)
    (root / "patients.csv").write_bytes(text.encode(encoding))
    assert opened(root).groups == ["Müller, 0", "Müller, 1", "Müller, 2", "Müller, 0"]


def test_the_column_of_a_table_that_names_the_images_is_found(tmp_path):
    root = films(tmp_path / "mine", [1] * 3, groups={"file": "a/p.csv", "column": "patient"})
    (root / "a").mkdir()
    (root / "a/p.csv").write_text("patient,image,file\nA,1,p0_0\nB,2,p1_0\nC,3,p2_0\n")
    assert opened(root).groups == ["A", "B", "C"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,person\np0_0,A\n", r"unknown column in .*p\.csv 'patient'.*There are: image, person"),
        ("image,patients\np0_0,A\n", r"Did you mean 'patients'\?"),
        ("", r"unknown column in .*p\.csv 'patient'"),
        ("patient\nA\n", r"p\.csv has the column patient only, expected another one that names the images"),
        (
            "image,patient\np0_0,A\np1_0,B\n",
            r"p\.csv has no line for 1 of 3 images, looked for in its column image: p2_0",
        ),
        ("image,patient\np0_0,A\np1_0,\np2_0,B", r"p\.csv:3 has no patient for p1_0\.png"),
        ("image,patient\np0_0,A\np1_0,B\np2_0", r"p\.csv:4 has no patient for p2_0\.png"),
        ("image,patient\np0_0,A\np1_0,B\np2_0,C\np0_0,C", r"p\.csv:5 puts p0_0\.png into C, a line above into A"),
    ],
)
def test_a_table_that_does_not_do(tmp_path, table, message):
    root = films(tmp_path / "mine", [1] * 3, groups={"file": "p.csv", "column": "patient"})
    (root / "p.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        opened(root)


def test_a_table_that_is_missing_elsewhere_or_in_another_encoding(tmp_path):
    root = films(tmp_path / "mine", [1] * 3, groups={"file": "p.csv", "column": "patient"})
    with pytest.raises(FileNotFoundError, match=r"p\.csv does not exist: .*dataset\.yaml names it under groups"):
        opened(root)
    (root / "p.csv").write_bytes("image,patient\np0_0,Müller\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"p\.csv is not UTF-8 .*in line 2"):
        opened(root)
    about(root, groups={"file": "../p.csv", "column": "patient"})
    shutil.move(root / "p.csv", tmp_path / "p.csv")
    with pytest.raises(ValueError, match=r"names .*p\.csv under groups: put it into .*mine, which DVC watches"):
        opened(root)


# --- pictures that are there twice


def copy(root, old, new, kinds=("images", "labels")):
    for kind in kinds:
        shutil.copy(root / kind / f"{old}.png", root / kind / f"{new}.png")


def prepared(root, tmp_path, split="paper"):
    prepare(opened(root), tmp_path / "cache", 18, 24, split, threads=1)
    return load_prepared(tmp_path / "cache")


def test_copies_stay_on_one_side_of_a_split_that_is_drawn(mine, tmp_path):
    for i in range(10):
        copy(mine, f"{i:03d}", f"{i + 10:03d}")
    told = r"one picture has more than one name, 10 times \(.*000\.png and .*010\.png, .*and 7 more\): they stay on one"
    with pytest.warns(UserWarning, match=told):
        data = prepared(mine, tmp_path)
    splits = data.meta["splits"]
    assert sorted(i for part in splits.values() for i in part) == [*range(20)]
    assert all((i in part) == (i + 10 in part) for part in splits.values() for i in range(10))
    assert [*map(len, splits.values())] == [16, 2, 2]


def test_a_copy_that_was_saved_in_another_format_counts_too(mine, tmp_path):
    Image.open(mine / "images/000.png").save(mine / "images/copy.bmp")
    shutil.copy(mine / "labels/000.png", mine / "labels/copy.png")
    with pytest.warns(UserWarning, match=r"more than one name, 1 times \(.*000\.png and .*copy\.bmp\)"):
        splits = prepared(mine, tmp_path).meta["splits"]
    assert all((0 in part) == (20 in part) for part in splits.values())


def test_copies_join_the_groups_that_hold_them(tmp_path):
    root = films(tmp_path / "mine", [2] * 10, groups=r"^(p\d+)_")
    copy(root, "p0_0", "p5_1")
    with pytest.warns(UserWarning, match="they stay on one side"):
        data = prepared(root, tmp_path)
    source = opened(root)
    for members in data.meta["splits"].values():
        found = {stem.split("_")[0] for stem in stems(source, members)}
        assert ("p0" in found) == ("p5" in found)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_copy_on_the_other_side_of_ones_own_lists_is_refused(mine, tmp_path, split):
    copy(mine, "000", "018" if split == "test" else "016")
    write_lists(mine, train=names(*range(16)), val=names(16, 17), test=names(18, 19))
    with pytest.raises(
        ValueError, match=r"more than one name, 1 times \(.*000\.png and .*01[68]\.png\), on two sides.*remove"
    ):
        prepared(mine, tmp_path, "official")
    assert not (tmp_path / "cache").exists()


def test_a_copy_on_the_other_side_of_ones_own_folders_is_refused(tmp_path):
    root = about(tmp_path / "mine")
    for part, members in (("train", range(12)), ("val", (20, 21)), ("test", (30, 3))):
        for i in members:
            scene(root, f"{part}{i}", i, parts=(f"{part}/images", f"{part}/labels"))
    with pytest.raises(ValueError, match=r"train3\.png and .*test3\.png\), on two sides"):
        prepared(root, tmp_path, "official")


def test_copies_on_one_side_of_ones_own_lists_do_no_harm(mine, tmp_path):
    copy(mine, "000", "001")
    copy(mine, "017", "019")
    write_lists(mine, train=names(*range(16)), val=names(16, 17), test=names(18))  # 019 stands in no list
    with pytest.warns(UserWarning, match=r"1 times \(.*000\.png and .*001\.png\): they stay on one side"):
        assert prepared(mine, tmp_path, "official").meta["splits"]["val"] == [16, 17]


def test_copies_stay_together_in_the_part_that_is_drawn_from_train(mine, tmp_path):
    for i in range(0, 16, 2):
        copy(mine, f"{i:03d}", f"{i + 1:03d}")
    write_lists(mine, train=names(*range(16)), test=names(*range(16, 20)))
    with pytest.warns(UserWarning, match="8 times"):
        splits = prepared(mine, tmp_path, "official").meta["splits"]
    assert all((i in part) == (i + 1 in part) for part in splits.values() for i in range(0, 16, 2))
    assert [*map(len, splits.values())] == [14, 2, 4]


def test_two_different_label_maps_of_one_picture_are_told(mine, tmp_path):
    copy(mine, "000", "001", ("images",))
    with pytest.warns(UserWarning, match=r"000\.png and .*001\.png\), and the label maps differ: at most one"):
        prepared(mine, tmp_path)


def test_equal_label_maps_of_one_picture_are_not(mine, tmp_path):
    copy(mine, "000", "001")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        prepared(mine, tmp_path)
    assert len(seen) == 1 and "differ" not in str(seen[0].message)


def test_images_of_one_colour_are_no_copies(mine, tmp_path):
    for i in range(10):
        Image.new("RGB", (24, 18)).save(mine / f"images/{i:03d}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [*map(len, prepared(mine, tmp_path).meta["splits"].values())] == [16, 2, 2]


def test_too_few_pictures_when_copies_count_once(tmp_path):
    root = make_folder(tmp_path / "mine", 10)
    for i in range(1, 10):
        shutil.copy(root / "images/00.jpg", root / f"images/{i:02d}.{'png' if i % 2 else 'jpg'}")
    with pytest.warns(UserWarning, match=r"1 times .*too few differ to keep them on one side of the split"):
        splits = prepared(root, tmp_path).meta["splits"]
    assert [*map(len, splits.values())] == [8, 1, 1]


def test_a_published_split_stays_as_it_is(tmp_path):
    root = make_camvid(tmp_path / "CamVid")
    for kind in ("", "annot"):
        shutil.copy(root / f"train{kind}/0001TP_000000.png", root / f"test{kind}/0001TP_000001.png")
    with pytest.warns(UserWarning, match="on two sides of the split, and test images must not train"):
        meta = prepare(open_source("camvid", root), tmp_path / "cache", 18, 24, "official")
    assert meta["splits"] == open_source("camvid", root).official


def test_a_cache_with_a_split_that_is_refused_stays(mine, tmp_path):
    copy(mine, "000", "019")
    with pytest.warns(UserWarning):
        meta = prepared(mine, tmp_path).meta
    write_lists(mine, train=names(*range(16)), val=names(16, 17), test=names(18, 19))
    with pytest.raises(ValueError, match="on two sides"):
        prepared(mine, tmp_path, "official")
    assert json.loads((tmp_path / "cache/meta.json").read_text()) == meta


# --- nearly the same


def test_frames_of_a_film_are_near_and_other_pictures_are_not():
    rng = np.random.default_rng(0)
    blobs = [Image.fromarray(rng.integers(256, size=(9, 12, 3)).astype(np.uint8)).resize((96, 72), 3) for _ in range(8)]
    moved = [blob.transform(blob.size, Image.Transform.AFFINE, (1, 0, 0.5, 0, 1, 0)) for blob in blobs[:3]]
    images = [np.array(image) for image in (*blobs, *moved)]
    assert near_duplicates(images, {"train": [*range(8)], "test": [8, 9, 10]}) == [(0, 8), (1, 9), (2, 10)]
    assert near_duplicates(images, {"train": [*range(8)], "val": [], "test": []}) == []


def test_dark_borders_do_not_make_pictures_alike():
    rng = np.random.default_rng(0)
    images = np.zeros((6, 96, 96, 3), np.uint8)
    images[:, 32:64, 32:64] = np.kron(rng.integers(256, size=(6, 8, 8, 1)), np.ones((1, 4, 4, 3)))
    assert near_duplicates([*images, images[0] // 2 * 2], {"train": [*range(6)], "test": [6]}) == [(0, 6)]


@pytest.mark.skipif(not CAMVID.is_dir(), reason="../shared/data/camvid is not here")
def test_near_duplicates_of_real_films_stand_in_one_film():
    source = open_source("camvid", CAMVID)
    files = [pair.image for pair in source.pairs if pair.image.parent.name != "train"]
    images = [np.asarray(Image.open(file).resize((128, 96))) for file in files]
    film = [file.name[:6] for file in files]
    pairs = near_duplicates(images, {"train": [*range(0, len(files), 2)], "test": [*range(1, len(files), 2)]})
    assert len(pairs) > 100 and all(film[one] == film[other] for one, other in pairs)


def test_the_embedded_streets_have_none():
    source = open_source("folder", "data/streets")
    images = [np.asarray(Image.open(pair.image).convert("RGB")) for pair in source.pairs]
    assert same_pictures(picture_hashes(images)) == []
    assert near_duplicates(images, split_indices(source)) == []


# --- the folder that `prepare` writes to


def test_prepare_and_load_resolve_a_relative_folder_alike(mine, tmp_path, monkeypatch):
    monkeypatch.setattr("pat.datasets.ROOT", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    prepare(open_source("folder", "mine"), "cache/mine", 18, 24)
    assert (tmp_path / "cache/mine/meta.json").exists() and not any((tmp_path / "elsewhere").iterdir())
    assert len(load_prepared("cache/mine").images) == 20
