"""What is in one image file and one label file, and what a dataset.yaml says about it."""

import io
import shutil
import struct
import warnings
import zlib

import numpy as np
import pytest
import yaml
from miniatures import draw, pixels
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from pat.annotation import (
    LIMIT,
    VOID,
    FilePair,
    default_colours,
    label_values,
    open_image,
    read_legend,
)
from pat.datasets import load_prepared, open_source, prepare, read_pair, void_as_class
from pat.params import read_yaml

W, H = 24, 18
BINARY = {"names": ["background", "object"], "ignore_index": 255}
COLOURS = np.array([[0, 0, 0], [200, 40, 40], [40, 200, 40]], np.uint8)
THREE = {"names": ["a", "b", "c"], "colours": COLOURS.tolist(), "ignore_index": 255}


def truth(i, classes=2):
    "Stripes of all classes."
    return np.broadcast_to(((np.arange(W) * classes // W + i) % classes).astype(np.uint8), (H, W)).copy()


def content(image, format="png", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def make(tmp_path):
    "Writes a dataset: `label(i)` is the image or the bytes of a label file, `photo(i)` of a photo."

    def make(about, label=truth, photo=None, images=10, ending="png"):
        root = tmp_path / "mine"
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        for i in range(images):
            draw(root / "images" / f"{i:02d}.png", i, "RGB")
            if photo:
                (root / "images" / f"{i:02d}.png").write_bytes(photo(i))
            made = label(i)
            made = Image.fromarray(made) if isinstance(made, np.ndarray) else made
            (root / "labels").mkdir(exist_ok=True)
            file = root / "labels" / f"{i:02d}.{ending}"
            file.write_bytes(made if isinstance(made, bytes) else content(made))
        text = about if isinstance(about, str) else yaml.safe_dump(about, sort_keys=False)
        (root / "dataset.yaml").write_text(text)
        return root

    return make


def prepared(root, height=H, width=W, **options):
    cache = root.parent / "cache"
    prepare(open_source("folder", root, **options), cache, height, width, threads=1)
    return load_prepared(cache)


def refused(root, message):
    "The error of a dataset that cannot be, before anything is written to its place."
    with pytest.raises(ValueError, match=message):
        prepared(root)
    assert not (root.parent / "cache").exists()


def legend(tmp_path, text):
    file = tmp_path / "dataset.yaml"
    file.write_text(text)
    return read_legend(file)


# --- dataset.yaml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "has neither names nor labels"),
        ("names: [a]\ncolors: [[0, 0, 0]]", r"unknown key in .* 'colors'\. Did you mean 'colours'"),
        ("names: [a]\nlabel: {0: a}", "Did you mean 'labels'"),
        ("names: [a, no]", "names has False where a class name is expected; YAML reads yes, no"),
        ("names: [a, null]", "names has None where a class name"),
        ("names: [a, ~]", "names has None where a class name"),
        ("names: [a, 3]", "names has 3 where a class name .*: put the name in quotes"),
        ("names: [a, 1.5]", "names has 1.5 where a class name"),
        ("names: [a, 2024-01-02]", "names has datetime.date"),
        ("names: [a, [b]]", r"names has \['b'\] where a class name"),
        ("names: [a, '']", "names has an empty class name"),
        ("names: [a, '  ']", "names has an empty class name"),
        ("names: [a, b, a]", "names the class 'a' twice"),
        ("names: {0: a}", "has names {0: 'a'}, expected a list"),
        ("names: a", "has names 'a', expected a list"),
        (f"names: {[f'c{i}' for i in range(256)]}", "names 256 classes, expected at most 255"),
        ("names: [a]\ncolours: [[0, 0, 256]]", r"has the colour \[0, 0, 256\]"),
        ("names: [a]\ncolours: [[0, 0, true]]", r"has the colour \[0, 0, True\]"),
        ("names: [a]\ncolours: [[0, 0, 1.0]]", r"has the colour \[0, 0, 1.0\]"),
        ("names: [a]\ncolours: ['#00000']", "has the colour '#00000'"),
        ("names: [a]\ncolours: {a: [0, 0, 0]}", "has colours {.*expected a list"),
        ("names: [a]\nignore_index: -1", "has ignore_index -1, expected 0 to 65535"),
        ("names: [a]\nignore_index: true", "has ignore_index True, expected 0 to 65535"),
        ("names: [a]\nignore_index: '255'", "has ignore_index '255', expected 0 to 65535"),
        ("names: [a, b]\nignore_index: 0", "which is class 'a' in names; .*: labels: {0: void, 1: a, 2: b}"),
        ("names: [a, b]\nignore_index: 1", "which is class 'b' in names; .*: labels: {1: void, 0: a, 2: b}"),
        ("names: [a]\nexif: turned", "unknown value of exif .*Did you mean 'turn'"),
        ("names: [a]\nlabel_suffix: 3", "has label_suffix 3, expected a text"),
        ("names: [a]\ngroups: 3", "has groups 3, expected a regular expression"),
        ("names: [a]\ngroups: '(p1'", "has groups '.p1', which is no regular expression"),
        ("names: [a]\ngroups: {file: a.csv}", "expected a regular expression, such as"),
        ("labels:", "has labels None, expected lines such as .*without quotes, # begins a comment"),
        ("labels:\n  #804080: road", "has labels None, .*without quotes, # begins a comment"),
        ("labels: [a, b]", r"has labels \['a', 'b'\], expected lines"),
        ("labels: {0: a, '#000000': b}", "has 0 and '#000000' in labels, expected values only or colours only"),
        ("labels: {'#000000': b, 0: a}", "has '#000000' and 0 in labels, expected values only or colours only"),
        ("labels: {'0': a}", "has the key '0' in labels, expected a value of 0 to 65535 without quotes, or a colour"),
        ("labels: {'#fff': a}", "has the key '#fff' in labels"),
        ("labels: {'804080': a}", "has the key '804080' in labels"),
        ("labels: {'#80408g': a}", "has the key '#80408g' in labels"),
        ("labels: {65536: a}", "has the key 65536 in labels"),
        ("labels: {-1: a}", "has the key -1 in labels"),
        ("labels: {yes: a}", "has the key True in labels"),
        ("labels: {0.5: a}", "has the key 0.5 in labels"),
        ("labels: {'#FF0000': a, '#ff0000': b}", "has '#FF0000' and '#ff0000' in labels, which are the same"),
        ("labels: {0: no, 1: yes}", "0 in labels has False where a class name"),
        ("labels: {0: , 1: a}", "0 in labels has None where a class name"),
        ("labels: {0: 3}", "0 in labels has 3 where a class name"),
        ("labels: {0: ''}", "0 in labels has an empty class name"),
        ("labels: {0: void}", r"has names \[\], expected a list"),
        ("names: [road]\nlabels: {0: raod}", "unknown class in labels of .* 'raod'. Did you mean 'road'"),
        ("names: [void, road]\nlabels: {0: void}", "has the class 'void' in names; in labels it means no class"),
    ],
)
def test_a_dataset_yaml_that_cannot_be(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        legend(tmp_path, text)
    assert str(tmp_path / "dataset.yaml") in str(error.value)


def test_names_alone_are_enough(tmp_path):
    found = legend(tmp_path, "names: [a, b]")
    assert found.ids == {0: 0, 1: 1} and found.colour_ids == {} and found.colours == default_colours(2)
    assert found.exif is None and found.label_suffix == "" and found.groups is None and not found.said


def test_labels_name_the_classes_in_their_order(tmp_path):
    found = legend(tmp_path, "labels: {7: car, 0: void, 3: road, 9: car}")
    assert found.names == ["car", "road"] and found.ids == {7: 0, 0: VOID, 3: 1, 9: 0} and found.said


def test_names_say_the_order_and_classes_that_no_label_has(tmp_path):
    found = legend(tmp_path, "names: [sky, road, car]\nlabels: {1: car, 2: road}")
    assert found.names == ["sky", "road", "car"] and found.ids == {1: 2, 2: 1}


def test_labels_overrule_ignore_index(tmp_path):
    assert legend(tmp_path, "labels: {0: a, 255: b}\nignore_index: 255").ids == {0: 0, 255: 1}
    assert legend(tmp_path, "labels: {0: a, 1: b}\nignore_index: 255").ids == {0: 0, 1: 1, 255: VOID}
    assert legend(tmp_path, "labels: {'#000000': a}\nignore_index: 255").ids == {}


def test_colours_of_labels_are_drawn_with(tmp_path):
    text = "names: [a, b, c]\nlabels: {'#010203': b, '#040506': b, '#0708Ff': a}"
    assert legend(tmp_path, text).colours == [[7, 8, 255], [1, 2, 3], default_colours(3)[2]]
    assert legend(tmp_path, f"{text}\ncolours: ['#000001', [0, 0, 2], '#000003']").colours[1] == [0, 0, 2]


def test_two_classes_of_one_colour_are_not_read_by_it(tmp_path):
    found = legend(tmp_path, "names: [a, b, c]\ncolours: [[1, 1, 1], [2, 2, 2], [1, 1, 1]]")
    assert found.colour_ids == {0x020202: 1} and len(found.colours) == 3


def test_names_that_yaml_would_misread_are_fine_in_quotes(tmp_path):
    assert legend(tmp_path, "names: ['no', 'null', '3']").names == ["no", "null", "3"]


# --- YAML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"a\.yaml:3 has the key 'a' again, after line 1: remove one"),
        (
            "x:\n  - {b: 1}\n  - y:\n      b: 1\n      c: 2\n      b: 3",
            r"a\.yaml:6 has the key 'b' again, after line 4",
        ),
        ("{0x10: a, 16: b}", r"a\.yaml:1 has the key 16 again"),
        ("{yes: a, true: b}", r"a\.yaml:1 has the key True again"),
        ("x: &all {a: 1}\ny: {<<: *all, b: 1, b: 2}", r"a\.yaml:2 has the key 'b' again"),
        ("a: [", r"a\.yaml is not valid YAML"),
        ("a: 2024-13-45", r"a\.yaml is not valid YAML: month"),
        ("a: !!python/none x", r"a\.yaml is not valid YAML"),
        ("{[a]: 1, [a]: 2}", r"a\.yaml is not valid YAML.*unhashable"),
    ],
)
def test_yaml_that_says_a_key_twice_or_nothing(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1",
        "- a\n- a",
        "{1: a, '1': b}",
        "x: &all {a: 1}\ny: {<<: *all, a: 2}\nz: [*all, *all]",
        "a: {b: 1}\nc: {b: 1}",
    ],
)
def test_yaml_that_says_each_key_once(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml") == yaml.safe_load(text)


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_byte_order_mark(tmp_path, start):
    (tmp_path / "a.yaml").write_text(f"{start}names: [Bäume]\r\n", encoding="utf-8", newline="")
    assert read_yaml(tmp_path / "a.yaml") == {"names": ["Bäume"]}


@pytest.mark.parametrize(
    ("encoding", "where"),
    [
        ("latin-1", "byte 0xe4 at position 17, in line 3"),
        ("cp437", "byte 0x84"),
    ],
)
def test_another_encoding(tmp_path, encoding, where):
    (tmp_path / "a.yaml").write_bytes("names:\n- a\n- a: Bäume".encode(encoding))
    with pytest.raises(ValueError, match=rf"a\.yaml is not UTF-8 \({where}.*save it with the encoding UTF-8"):
        read_yaml(tmp_path / "a.yaml")


# --- values


def test_masks_of_0_and_255_whose_255_is_called_void(make):
    root = make(BINARY, lambda i: truth(i) * 255)
    refused(root, r"only class 'background' occurs .* 50\.0% .* labels: {0: background, 255: object}; if it is void")


def test_the_line_that_the_message_proposes_is_right(make):
    line = "labels: {0: background, 255: object}"
    root = make(yaml.safe_dump(BINARY) + line, lambda i: truth(i) * 255)
    data = prepared(root)
    assert all((data.labels[i] == truth(i)).all() for i in range(10))
    (root / "dataset.yaml").write_text(line)
    assert (prepared(root).labels == data.labels).all()


@pytest.mark.parametrize(
    ("about", "label", "message"),
    [
        ({"names": ["object"], "ignore_index": 255}, lambda i: truth(i) * 255, "labels: {0: background, 255: object}"),
        (BINARY, lambda i: 255 - truth(i) * 254, "only class 'object' occurs .*labels: {1: object, 255: background}"),
        (BINARY | {"ignore_index": 128}, lambda i: truth(i) * 128, "labels: {0: background, 128: object}"),
        (THREE, lambda i: truth(i) * 255, "only class 'a' occurs"),
        (BINARY, lambda i: np.full((H, W), 255, np.uint8), "no class occurs in the label maps, and 100.0%"),
        ({"names": ["background", "object"]}, lambda i: truth(i) * 255, r"holds \[255\], expected one of \[0, 1\]"),
        (
            {"names": ["background", "object"]},
            lambda i: truth(i) * 255,
            "labels: {0: background, 1: object, 255: CLASS}",
        ),
        (BINARY, lambda i: truth(i, 3) * 127, r"holds \[127, 254\], expected one of \[0, 1, 255\]"),
        (
            BINARY,
            lambda i: truth(i) + 1,
            r"holds \[2\], expected one of .*labels: {0: background, 1: object, 255: void, 2: CLASS}",
        ),
    ],
)
def test_other_masks_that_lose_a_class(make, about, label, message):
    refused(make(about, label), message)


def test_a_class_in_place_of_which_void_stands_is_warned_of(make):
    with pytest.warns(
        UserWarning, match=r"33\.\d% of the pixels are void, in 10 .* 'c' never occurs"
    ):
        prepared(make(THREE, lambda i: np.array([0, 1, 255], np.uint8)[truth(i, 3)]))


def test_some_masks_of_0_and_1_and_others_of_0_and_255(make):
    with pytest.warns(UserWarning, match=r"'object' occurs in 5 others, never beside void: do some masks write it"):
        prepared(make(BINARY, lambda i: truth(i) * (255 if i % 2 else 1)))


@pytest.mark.parametrize(
    ("about", "label"),
    [
        (BINARY, lambda i: np.array([0, 1, 255], np.uint8)[truth(i, 3)]),
        (BINARY, truth),
        (THREE, lambda i: truth(i, 2)),  # nothing is void: a class that never occurs is another matter
        ({"labels": {0: "a", 1: "b", 255: "void"}}, lambda i: np.array([0, 1, 255], np.uint8)[truth(i, 3)]),
    ],
)
def test_void_that_is_meant(make, about, label):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(make(about, label))


def test_one_class_and_void_that_labels_have_said(make):
    root = make({"labels": {0: "background", 1: "object", 255: "void"}}, lambda i: truth(i) * 255)
    with pytest.warns(UserWarning, match=r"50\.0% of the pixels are void, .* 'object' never occurs in the label maps"):
        prepared(root)


def test_zero_is_void_and_classes_begin_at_one(make):
    data = prepared(make({"labels": {0: "void", 1: "a", 2: "b"}}, lambda i: truth(i, 3)))
    for i in range(10):
        np.testing.assert_array_equal(data.labels[i], truth(i, 3) - np.uint8(1))
    assert data.meta["names"] == ["a", "b"] and data.meta["ignore_index"] == VOID


def test_values_of_sixteen_bits(make):
    values = np.array([7, 1000, 65535], np.uint16)
    about = {"labels": {7: "a", 1000: "b", 65535: "void"}}
    data = prepared(make(about, lambda i: values[truth(i, 3)]))
    for i in range(10):
        np.testing.assert_array_equal(data.labels[i], np.array([0, 1, 255])[truth(i, 3)])


def test_labels_are_scored_as_void(make):
    root = make({"labels": {"#000000": "void", "#c82828": "a", "#28c828": "b"}}, lambda i: COLOURS[truth(i, 3)])
    data = prepared(root, void="class")
    np.testing.assert_array_equal(data.labels[0], np.array([2, 0, 1])[truth(0, 3)])
    assert data.meta["names"] == ["a", "b", "void"]
    with pytest.raises(ValueError, match="has no void"):
        void_as_class(open_source("folder", make({"labels": {"#000000": "a"}})), "mine")


# --- how files store values


def grey_png(values, bits):
    "A PNG file of 1, 2, 4 or 16 bits, as label tools other than Pillow write it."
    rows = [np.unpackbits(row[:, None].astype(np.uint8), axis=1)[:, 8 - bits :].ravel() for row in values]
    data = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    header = struct.pack(">2I5B", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    pieces = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def grey_tiff(values, bits, white=1, fill=1):
    "An uncompressed TIFF file of few bits; `white` 0 where 0 is white."
    rows = [np.unpackbits(row[:, None].astype(np.uint8), axis=1)[:, 8 - bits :].ravel() for row in values]
    data = b"".join(np.packbits(row).tobytes() for row in rows)
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, white), (266, fill), (273, 8 + 2 + 12 * 10 + 4),
            (277, 1), (278, height), (279, len(data))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


def grey_bmp(values, bits, palette):
    "A BMP file of 1 or 4 bits."
    rows = [np.unpackbits(row[:, None].astype(np.uint8), axis=1)[:, 8 - bits :].ravel() for row in values[::-1]]
    rows = [np.packbits(row).tobytes() for row in rows]
    data = b"".join(row + bytes(-len(row) % 4) for row in rows)
    colours = b"".join(bytes([b, g, r, 0]) for r, g, b in palette)
    start = 54 + len(colours)
    height, width = values.shape
    header = struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(data), 0, 0, len(palette), 0)
    return header + info + colours + data


def values_of(raw, own=True):
    opened = open_image("a", raw, own)
    return label_values("a", opened, opened.image)[0]


RAMP = [[17 * i] * 3 for i in range(16)]
IDENTITY = [[i] * 3 for i in range(16)]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_greys_of_few_bits_are_what_the_file_stores(bits):
    values = np.random.default_rng(bits).integers(0, 2**bits, (H, W + 1))
    values.flat[0], values.flat[1] = 0, 2**bits - 1
    for raw in (grey_png(values, bits), grey_tiff(values, bits), content(Image.fromarray(values.astype(np.uint8)))):
        np.testing.assert_array_equal(values_of(raw), values)
    for palette in {1: ([[0] * 3, [255] * 3], [[255] * 3, [0] * 3]), 4: (RAMP, RAMP[::-1])}.get(bits, ()):
        np.testing.assert_array_equal(values_of(grey_bmp(values, bits, palette)), values)


def test_a_bmp_file_that_pillow_cannot_read_is_named():
    "Four bits and a palette of grey i for number i; Pillow takes it for eight bits."
    with pytest.raises(ValueError, match=r"a is truncated or not an image .*: copy or export it again, as PNG"):
        values_of(grey_bmp(np.zeros((H, W), int), 4, IDENTITY))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tiff_files_whose_zero_is_white_are_what_they_show(bits):
    values = np.random.default_rng(bits).integers(0, 2**bits, (H, W))
    np.testing.assert_array_equal(values_of(grey_tiff(values, bits, white=0)), 2**bits - 1 - values)


@pytest.mark.parametrize("maximum", [1, 2, 5, 254, 255, 256, 1000, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_the_values_of_pgm_files_are_those_of_the_file(maximum, plain):
    "Pillow stretches them to 255 or 65535, by what the header calls the largest value."
    values = np.random.default_rng(maximum).integers(0, maximum + 1, (H, W))
    header = f"{'P2' if plain else 'P5'} {W} {H} {maximum}\n".encode()
    raw = (
        " ".join(map(str, values.ravel())).encode()
        if plain
        else values.astype(">u2" if maximum > 255 else "u1").tobytes()
    )
    np.testing.assert_array_equal(values_of(header + raw), values)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("png", {}), ("tiff", {}), ("tiff", {"compression": "tiff_lzw"}),
        ("tiff", {"compression": "tiff_adobe_deflate"}),
        ("tiff", {"compression": "packbits"}), ("bmp", {}), ("gif", {}), ("ppm", {}), ("tga", {}), ("pcx", {}),
        ("webp", {"lossless": True, "exact": True}),
    ],
)  # fmt: skip
def test_lossless_formats_keep_the_values(format, options, make):
    root = make(BINARY, lambda i: content(Image.fromarray(truth(i)), format, **options))
    data = prepared(root)
    for i in range(10):
        np.testing.assert_array_equal(data.labels[i], truth(i))


@pytest.mark.parametrize("compression", ["group4", "group3", "tiff_lzw", None])
def test_bilevel_tiff(compression):
    values = truth(1).astype(bool)
    np.testing.assert_array_equal(values_of(content(Image.fromarray(values), "tiff", compression=compression)), values)


def test_greys_of_sixteen_and_thirty_two_bits():
    values = np.array([[0, 3, 300, 65535]])
    short, long, big = (Image.fromarray(values.astype(kind)) for kind in (np.uint16, np.int32, ">u2"))
    files = [(short, "png"), (short, "tiff"), (big, "tiff"), (long, "tiff")]
    for raw in [content(*file) for file in files] + [content(short, "tiff", compression="tiff_lzw")]:
        assert values_of(raw).dtype == np.uint16
        np.testing.assert_array_equal(values_of(raw), values)


@pytest.mark.parametrize(
    ("image", "format", "message"),
    [
        (Image.fromarray(np.array([[-1, 3]], np.int32)), "tiff", "a holds -1 to 3, expected values of 0 to 65535"),
        (Image.fromarray(np.array([[70000, 3]], np.int32)), "tiff", "a holds 3 to 70000, expected"),
        (Image.fromarray(np.zeros((2, 2), np.float32)), "tiff", "a holds floating point numbers, expected whole ones"),
        (Image.new("CMYK", (2, 2)), "tiff", "a has the colours CMYK, expected class numbers, or colours in RGB"),
        (Image.new("LAB", (2, 2)), "tiff", "a has the colours LAB, expected"),
    ],
)
def test_files_that_hold_no_classes(image, format, message):
    with pytest.raises(ValueError, match=message):
        values_of(content(image, format))


def test_colours_of_sixteen_bits_would_lose_their_low_bits():
    "Pillow keeps the upper eight bits, so class 1 of 16 bits would be class 0."
    data = b"".join(b"\0" + np.full((2, 3), 1, ">u2").tobytes() for _ in range(2))
    parts = ((b"IHDR", struct.pack(">2I5B", 2, 2, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    raw = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts
    )
    with pytest.raises(ValueError, match="a stores colours as RGB;16B, expected 8 bits per channel"):
        values_of(raw)


LOSSY = {
    "JPEG": ("jpeg", {"quality": 95}), "JPEG2000": ("jpeg2000", {}), "AVIF": ("avif", {}),
    "lossy WebP": ("webp", {"quality": 90}), "TIFF with jpeg inside": ("tiff", {"compression": "jpeg"}),
    "MPO": ("mpo", {"save_all": True}),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_label_maps_are_refused_whatever_their_name(kind, make):
    format, options = LOSSY[kind]
    if kind == "MPO":
        options = options | {"append_images": [Image.fromarray(truth(1))]}
    root = make(BINARY, lambda i: content(Image.fromarray(truth(i)), format, **options))
    refused(root, rf"labels/00\.png is stored as {kind}, which does not keep the values .*; converting does not help")


def test_lossy_webp_with_an_alpha_channel_is_found(make):
    image = Image.fromarray(truth(0)).convert("RGBA")
    image.putpixel((0, 0), (0, 0, 0, 0))
    refused(make(BINARY, lambda i: content(image, "webp")), "stored as lossy WebP")


@pytest.mark.parametrize("coloured", [False, True])
def test_a_png_that_was_a_jpeg(make, coloured):
    about = {"names": ["a", "b"], "colours": [[0, 0, 0], [200, 40, 40]]} if coloured else {"labels": {0: "a", 200: "b"}}

    def label(i):
        image = Image.fromarray(
            COLOURS[truth(i) * np.indices((H, W)).sum(0) % 2] if coloured else truth(i) * np.uint8(200)
        )
        return Image.open(io.BytesIO(content(image, "jpeg", quality=60)))

    found = r"\d+ colours that are no class: #.*, \.\.\." if coloured else r"\[1, 2, 199, 201, 203\], expected .*"
    cause = "so many often come from lossy compression such as JPEG, or from scaling that mixes neighbours"
    refused(make(about, label), f"holds {found}; {cause}")


def test_a_label_map_scaled_with_smoothing(make):
    label = lambda i: (
        Image.fromarray(COLOURS[truth(i, 3)]).resize((2 * W, 2 * H), Image.BICUBIC).resize((W, H), Image.BICUBIC)
    )
    refused(
        make(THREE, label),
        "so many often come from lossy compression such as JPEG, or from scaling that mixes neighbours",
    )


@pytest.mark.parametrize("format", ["tiff", "gif", "png", "webp"])
def test_several_pages_of_labels(make, format):
    pages = [Image.fromarray(truth(i) * 255).convert("L") for i in range(3)]
    lossless = {"lossless": True} if format == "webp" else {}
    raw = content(pages[0], format, save_all=True, append_images=pages[1:], **lossless)
    refused(make(BINARY, lambda i: raw), r"labels/00\.png holds [23] pages or frames, expected one")


# --- colours


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("format", ["png", "tiff", "bmp", "webp"])
def test_colour_masks_are_read_by_the_colours_of_the_classes(make, mode, format):
    lossless = {"lossless": True, "exact": True} if format == "webp" else {}
    root = make(THREE, lambda i: content(Image.fromarray(COLOURS[truth(i, 3)]).convert(mode), format, **lossless))
    data = prepared(root)
    for i in range(10):
        np.testing.assert_array_equal(data.labels[i], truth(i, 3))


def test_labels_say_colours_and_which_of_them_are_void(make):
    about = {"labels": {"#000000": "void", "#c82828": "a", "#28C828": "a"}}
    data = prepared(make(about, lambda i: COLOURS[truth(i, 3)]))
    np.testing.assert_array_equal(data.labels[3], np.array([255, 0, 0])[truth(3, 3)])
    assert data.meta["names"] == ["a"] and data.meta["colours"] == [[200, 40, 40]]


def test_unknown_colours_are_counted_and_named(make):
    def label(i):
        colours = COLOURS[truth(i, 3)]
        colours[:2, :3], colours[5, 5] = (1, 2, 3), (4, 5, 6)
        return colours

    line = "labels: {'#000000': a, '#c82828': b, '#28c828': c, '#010203': CLASS, '#040506': CLASS}"
    told = r"holds 2 colours that are no class: #010203 \(6 pixels\), #040506 \(1 pixels\); say .*"
    refused(make(THREE, label), rf"labels/00\.png {told}{line}")


def test_the_placeholder_of_the_message_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown class in labels of .*'CLASS'"):
        legend(tmp_path, "names: [a]\nlabels: {'#000000': a, '#010203': CLASS}")


@pytest.mark.parametrize("about", [{"names": ["a", "b", "c"]}, {"labels": {0: "a", 1: "b", 2: "c"}}])
def test_colours_where_only_values_are_known(make, about):
    line = r"labels: {('#(000000|c82828|28c828)': CLASS(, )?){3}}"  # the most frequent first
    told = r"labels/00\.png has mode RGB, expected one 8-bit channel of class ids; say what they are"
    refused(make(about, lambda i: COLOURS[truth(i, 3)]), f"{told}.*{line}")


@pytest.mark.parametrize(
    "about", [THREE | {"names": list("xyz")}, {"names": list("xyz")}, {"labels": {0: "x", 1: "y", 2: "z"}}]
)
def test_greys_written_as_rgb_are_values(make, about):
    data = prepared(make(about, lambda i: np.repeat(truth(i, 3)[..., None], 3, 2)))
    for i in range(10):
        np.testing.assert_array_equal(data.labels[i], truth(i, 3))


def test_black_and_white_masks_in_rgb(make):
    white = lambda i: np.repeat(truth(i)[..., None] * 255, 3, 2)
    for labels in ({0: "a", 255: "b"}, {"#000000": "a", "#ffffff": "b"}):
        data = prepared(make({"labels": labels}, white))
        np.testing.assert_array_equal(data.labels[1], truth(1))


def test_greys_that_are_values_of_some_classes_and_colours_of_others(make):
    about = {"names": ["road", "background"], "colours": [[128, 64, 128], [0, 0, 0]]}
    black = lambda i: np.zeros((H, W, 3), np.uint8)
    refused(
        make(about, black),
        r"labels/00\.png can be read in two ways, its greys \[0\] are values .*say in dataset\.yaml by `lab",
    )


def test_grey_files_beside_colour_files(make):
    about = {"labels": {"#000000": "a", "#ffffff": "b"}}
    data = prepared(make(about, lambda i: truth(i) * 255 if i % 2 else np.repeat(truth(i)[..., None] * 255, 3, 2)))
    for i in range(10):
        np.testing.assert_array_equal(data.labels[i], truth(i))
    refused(make(about, lambda i: truth(i).astype(np.uint16) * 300), "holds the value 300, which has no colour")


def test_transparent_pixels_of_a_label_map_are_refused(make):
    def label(i, alpha=128):
        image = Image.fromarray(COLOURS[truth(i, 3)]).convert("RGBA")
        image.putpixel((2, 2), (0, 0, 0, alpha))
        return image

    for about in (THREE, {"names": ["a", "b", "c"]}, {"labels": {"#000000": "a", "#c82828": "b", "#28c828": "c"}}):
        refused(make(about, label), "transparent")
    refused(
        make(THREE, lambda i: label(i, 0)),
        r"labels/00\.png holds 1 colours .*: transparent \(1 pixels\); .*flatten the image",
    )
    grey = Image.fromarray(truth(0)).convert("LA")
    prepared(make(BINARY, lambda i: grey))
    grey.putpixel((0, 0), (0, 3))
    refused(make(BINARY, lambda i: grey), "transparent")


# --- palettes


def indexed(values, palette, **info):
    image = Image.fromarray(values.astype(np.uint8), "L").copy()
    image.putpalette(np.array(palette, np.uint8).ravel().tolist())
    image.info.update(info)
    return image


def test_palettes_in_an_order_of_their_own(make):
    own = lambda i: Image.fromarray(COLOURS[truth(i, 3)]).convert("P", palette=Image.Palette.ADAPTIVE)
    line = "labels: {'#000000': a, '#c82828': b, '#28c828': c}"
    root = make(THREE, own)
    refused(
        root,
        rf"labels/0\d\.png the colour .*, which is class .*to read colours, write {line}; to read numbers, write",
    )
    (root / "dataset.yaml").write_text(line)
    data = prepared(root)
    for i in range(10):
        np.testing.assert_array_equal(data.labels[i], truth(i, 3))


def test_palettes_that_differ_where_no_colours_are_said(make):
    swapped = lambda i: indexed(truth(i), COLOURS[[0, 1]] if i != 4 else COLOURS[[1, 0]])
    told = r"number 0 has the colour #c82828 in .*04\.png, and #000000 in .*00\.png: .*"
    line = r"labels: {'#000000': CLASS, '#c82828': CLASS} \(a class or void in place of CLASS\); .*labels: {0: back"
    refused(make(BINARY, swapped), told + line)
    root = make(BINARY, swapped)
    (root / "dataset.yaml").write_text("labels: {0: background, 1: object}")
    with pytest.warns(UserWarning, match="the number counts, as labels in .* says") as told:
        data = prepared(root)
    assert len(told) == 1 and all((data.labels[i] == truth(i)).all() for i in range(10))


def test_the_second_file_ends_the_work_and_the_first_stays_done(make, tmp_path):
    refused(
        make(BINARY, lambda i: indexed(truth(i), COLOURS[[0, 1]] if i < 5 else COLOURS[[1, 0]])), r"in .*05\.png, and"
    )
    journal = (tmp_path / "cache.tmp/journal.jsonl").read_text().splitlines()
    assert len(journal) == 6 and '"palette": {"0": "#000000", "1": "#c82828"}' in journal[1]
    make(BINARY, lambda i: indexed(truth(i), COLOURS[[0, 1]]))
    prepared(tmp_path / "mine")


def test_palettes_are_compared_with_what_was_done_before_a_kill(make, tmp_path):
    root = make(BINARY, lambda i: indexed(truth(i), COLOURS[[0, 1]]))
    whole = (root / "labels/06.png").read_bytes()
    (root / "labels/06.png").write_bytes(b"cut")
    refused(root, r"06\.png is truncated")
    (root / "labels/06.png").write_bytes(whole)
    (root / "labels/07.png").write_bytes(content(indexed(truth(7), COLOURS[[1, 0]])))
    refused(root, r"in .*07\.png, and #000000 in .*00\.png")


@pytest.mark.parametrize(
    "palette",
    [
        [[0, 0, 0], [128, 0, 0], [0, 128, 0]],  # as VOC
        [[i, i, i] for i in range(256)],
        [[127 * i] * 3 for i in range(3)],
        COLOURS.tolist(),
        COLOURS[[0, 1, 2, 1, 1, 2]].tolist(),  # with colours that nobody uses
    ],
)
@pytest.mark.parametrize("format", ["png", "tiff", "bmp", "gif"])
def test_palettes_that_agree_are_read_by_number(make, palette, format):
    data = prepared(make(THREE, lambda i: content(indexed(truth(i, 3), palette), format)))
    for i in range(10):
        np.testing.assert_array_equal(data.labels[i], truth(i, 3))


def test_greys_beside_palettes_and_void_in_any_colour(make):
    palette = [[0, 0, 0], [200, 40, 40], [40, 200, 40], *[[0, 0, 0]] * 252, [0, 0, 0]]
    values = lambda i: np.array([0, 1, 2, 255], np.uint8)[truth(i, 4)]
    data = prepared(make(THREE, lambda i: indexed(values(i), palette) if i % 2 else values(i)))
    for i in range(10):
        np.testing.assert_array_equal(data.labels[i], values(i))


def test_other_colours_in_dataset_yaml_are_compared_with_a_cache(make, tmp_path):
    root = make(THREE, lambda i: indexed(truth(i, 3), COLOURS))
    prepared(root)
    (root / "dataset.yaml").write_text(yaml.safe_dump(THREE | {"colours": COLOURS[[0, 2, 1]].tolist()}))
    with pytest.raises(ValueError, match=r"number 1, class 'b', has .* the colour #c82828, which is class 'c'"):
        prepared(root)


def test_transparency_of_a_palette_matters_where_colours_are_read(make):
    image = lambda i: content(indexed(truth(i, 3), COLOURS), transparency=0)
    np.testing.assert_array_equal(prepared(make(THREE, image)).labels[2], truth(2, 3))
    about = {"labels": {"#000000": "void", "#c82828": "a", "#28c828": "b"}}
    root = make(about, image)
    with pytest.raises(ValueError, match=r"00\.png holds 1 colours that are no class: transparent"):
        prepared(root)


def test_other_meanings_of_colours_are_read_again(make, capsys):
    root = make(THREE, lambda i: COLOURS[truth(i, 3)])
    first = prepared(root)
    assert (prepared(root).labels == first.labels).all() and not capsys.readouterr().out
    (root / "dataset.yaml").write_text(
        yaml.safe_dump(THREE | {"names": ["c", "b", "a"], "colours": COLOURS[::-1].tolist()})
    )
    np.testing.assert_array_equal(prepared(root).labels[0], 2 - truth(0, 3))
    assert "the colours of classes in dataset.yaml have changed, since" in capsys.readouterr().out


def test_a_palette_whose_numbers_are_no_classes_can_be_read_by_colour(make):
    own = lambda i: indexed(truth(i, 3) + 40, np.concatenate([COLOURS] * 20)[2:])
    refused(
        make(THREE, own),
        r"holds \[40, 41, 42\], expected .*; the file has a palette: list its colours under labels in data",
    )


# --- photos


def photo(i, orientation=1, size=(W, H), format="jpeg", **options):
    "A photo whose upper left third is bright as the sensor sees it."
    values = np.zeros((size[1], size[0], 3), np.uint8)
    values[: size[1] // 3, : size[0] // 3] = 250
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return content(
        Image.fromarray(values), format, exif=exif, **({"quality": 100} if format == "jpeg" else {}) | options
    )


def drawn(raw, turn):
    "The label map that marks the bright part, on the photo as a viewer shows it or on its pixels."
    image = Image.open(io.BytesIO(raw))
    if image.format == "TIFF" and not turn:  # Pillow shows it turned only
        image = Image.open(io.BytesIO(photo(0, 1)))
    image = ImageOps.exif_transpose(image) if turn else image
    return (np.asarray(image.convert("L")) > 125).astype(np.uint8)


def on_the_bright_part(data):
    images, labels = data.images.mean(-1), data.labels
    return all(
        images[i][labels[i] == 1].mean() > 200 > 50 > images[i][labels[i] == 0].mean() for i in range(len(labels))
    )


@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("turn", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_quarter_turn_is_proven_by_the_size_and_the_rest_is_asked(make, orientation, turn, format):
    raw = lambda i: photo(i, orientation, format=format)
    root = make(BINARY, lambda i: drawn(raw(i), turn), raw)
    if orientation in (2, 3, 4):
        refused(
            root,
            rf"images/00\.png has EXIF orientation {orientation}, .* sizes do not tell .*`exif: turn` if .*`exif: st",
        )
        (root / "dataset.yaml").write_text(yaml.safe_dump(BINARY | {"exif": "turn" if turn else "stored"}))
    assert on_the_bright_part(prepared(root, W, H) if turn and orientation > 4 else prepared(root))


@pytest.mark.parametrize("turn", [True, False])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_squares_are_asked(make, orientation, turn):
    raw = lambda i: photo(i, orientation, (18, 18))
    root = make(BINARY, lambda i: drawn(raw(i), turn), raw)
    refused(root, "sizes do not tell")
    (root / "dataset.yaml").write_text(yaml.safe_dump(BINARY | {"exif": "turn" if turn else "stored"}))
    assert on_the_bright_part(prepared(root, 18, 18))


@pytest.mark.parametrize("turn", [True, False])
def test_what_dataset_yaml_says_must_not_contradict_the_sizes(make, turn):
    raw = lambda i: photo(i, 6)
    fits, says = ("turn", "stored") if turn else ("stored", "turn")
    root = make(BINARY | {"exif": says}, lambda i: drawn(raw(i), turn), raw)
    refused(root, rf"their sizes fit by `exif: {fits}` only, but dataset\.yaml says `exif: {says}`")


def test_a_turned_photo_and_a_label_map_of_another_image(make):
    refused(
        make(BINARY, lambda i: np.zeros((5, 5), np.uint8), lambda i: photo(i, 6)),
        r"00\.png is \(5, 5\) pixels .* its image",
    )


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_label_map_with_the_same_orientation_is_turned_with_its_photo(make, orientation):
    def label(i):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        return content(Image.fromarray(drawn(photo(i, orientation), False)), exif=exif)

    root = make(BINARY, label, lambda i: photo(i, orientation))
    size = (W, H) if orientation == 6 else (H, W)
    data = prepared(root, *size)
    assert on_the_bright_part(data)
    np.testing.assert_array_equal(data.labels[0], drawn(photo(0, orientation), True))


def test_a_label_map_that_is_turned_alone_is_asked(make):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    label = lambda i: content(Image.fromarray(truth(i)), exif=exif)
    refused(make(BINARY, label), r"has EXIF orientation 1, its label .*00\.png 3, and their sizes do not tell")
    np.testing.assert_array_equal(prepared(make(BINARY | {"exif": "stored"}, label)).labels[0], truth(0))
    np.testing.assert_array_equal(prepared(make(BINARY | {"exif": "turn"}, label)).labels[0], truth(0)[::-1, ::-1])


def test_another_exif_prepares_anew(make, capsys):
    root = make(BINARY | {"exif": "turn"}, lambda i: drawn(photo(i, 3), True), lambda i: photo(i, 3))
    prepared(root)
    (root / "dataset.yaml").write_text(yaml.safe_dump(BINARY))
    with pytest.raises(ValueError, match="sizes do not tell"):
        prepared(root)
    assert "was prepared with another exif: all images are read again" in capsys.readouterr().out


def test_an_exif_block_that_is_broken_or_holds_nonsense_turns_nothing(make):
    for exif in (
        b"Exif\0\0II*\0garbage!",
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
    ):
        raw = content(Image.open(io.BytesIO(photo(0))), "jpeg", exif=exif, quality=100)
        assert on_the_bright_part(prepared(make(BINARY, lambda i, raw=raw: drawn(raw, False), lambda i, raw=raw: raw)))


def test_photos_of_a_published_dataset_are_read_as_stored():
    raw = photo(0, 3)
    label = content(Image.fromarray(drawn(raw, False)))
    image = FilePair("a.jpg", "a.png").decode((raw, label)).image
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(raw))))


@pytest.mark.parametrize(
    ("image", "format", "message"),
    [
        (Image.new("CMYK", (W, H)), "jpeg", "has the colours CMYK, expected grey or RGB: export it as RGB"),
        (Image.new("LAB", (W, H)), "tiff", "has the colours LAB, expected grey or RGB"),
        (Image.new("I;16", (W, H)), "png", "has mode I;16, expected 8 bits per channel: export it with 8 bits"),
        (Image.new("F", (W, H)), "tiff", "has mode F, expected 8 bits per channel"),
        (Image.new("RGBA", (W, H), (0, 0, 0, 254)), "png", "is transparent in places: flatten it"),
        (Image.new("LA", (W, H), (0, 0)), "png", "is transparent in places"),
        (Image.new("RGBA", (W, H), (0, 0, 0, 0)), "webp", "is transparent in places"),
    ],
)
def test_photos_that_cannot_be_shown_to_a_network(make, image, format, message):
    refused(make(BINARY, photo=lambda i: content(image, format)), rf"images/00\.png {message}")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_photos_of_other_modes_become_rgb(make, mode):
    image = Image.fromarray(pixels(3, "RGB")).convert(mode)
    data = prepared(make(BINARY, photo=lambda i: content(image)))
    np.testing.assert_array_equal(data.images[0], np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["tiff", "gif", "png", "webp"])
def test_several_pages_of_photos(make, format):
    pages = [Image.fromarray(pixels(i, "RGB")) for i in range(3)]
    raw = content(pages[0], format, save_all=True, append_images=pages[1:])
    refused(make(BINARY, photo=lambda i: raw), r"images/00\.png holds 3 pages or frames, expected one: save the one")


def test_the_second_photo_of_a_telephone_is_left_alone(make):
    first, second = (Image.fromarray(pixels(i, "RGB")) for i in range(2))
    raw = content(first, "mpo", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(raw)).n_frames == 2
    data = prepared(make(BINARY, photo=lambda i: raw))
    np.testing.assert_array_equal(data.images[0], np.asarray(Image.open(io.BytesIO(content(first, "jpeg")))))


def test_photos_larger_than_pillow_alone_reads(tmp_path):
    "Pillow warns from 89 million pixels on and ends at 179 million. A telephone's photo of 200 million is read."
    raw = content(Image.new("L", (16320, 12240)), compress_level=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image("a.png", raw, own=True).image.size == (16320, 12240)


@pytest.mark.parametrize("factor", [1.01, 2.5])
@pytest.mark.parametrize("kind", [grey_png, grey_tiff])
def test_photos_above_the_limit(make, factor, kind):
    "The header alone asks for them."
    big = struct.pack("<I", int(LIMIT * factor / W) + 1)
    raw = kind(np.zeros((H, W), int), 8)
    if kind is grey_png:
        header = raw[12:20] + big[::-1] + raw[24:29]
        raw = raw[:12] + header + struct.pack(">I", zlib.crc32(header)) + raw[33:]
    else:
        raw = raw.replace(struct.pack("<HHII", 257, 3, 1, H), struct.pack("<HHI", 257, 4, 1) + big)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(
            make(BINARY, photo=lambda i: raw),
            rf"images/00\.png has more than {LIMIT} pixels .*cut it and its label into",
        )


def test_text_and_colour_profiles_above_pillows_limit(make):
    text = PngImagePlugin.PngInfo()
    text.add_text("history", "a" * 2**21, zip=True)
    image = Image.fromarray(pixels(0, "RGB"))
    for options in ({"pnginfo": text}, {"icc_profile": bytes(2**21)}):
        raw = content(image, **options)
        message = r"images/00\.png has more text or a larger colour profile than .*: export it without metadata"
        refused(make(BINARY, photo=lambda i, raw=raw: raw), message)


def test_own_files_that_are_broken_are_copied_again(make):
    for raw in (b"", b"<html>", photo(0)[:300], content(Image.new("RGB", (W, H)), "tiff")[:200], b"RIFF0000WEBP"):
        refused(
            make(BINARY, photo=lambda i, raw=raw: raw),
            r"images/00\.png is truncated or not an image .*: copy or export it again",
        )


@pytest.mark.parametrize("lzw", [False, True])
@pytest.mark.parametrize("format", ["png", "tiff", "bmp", "gif", "webp"])
def test_whichever_byte_of_a_file_is_wrong_an_error_names_it(format, lzw, tmp_path):
    options = {"tiff": {"compression": "tiff_lzw" if lzw else None}, "webp": {"lossless": True}}.get(format, {})
    image = Image.fromarray(COLOURS[truth(0)]) if format == "webp" else indexed(truth(0), COLOURS)
    whole = content(image, format, **options)
    pair = FilePair(tmp_path / "a.jpg", tmp_path / "a.png", "sizes")
    rng = np.random.default_rng(0)
    for position in rng.permutation(len(whole))[:200]:
        spoilt = whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                pair.decode((content(Image.new("RGB", (W, H))), spoilt))
            except ValueError as error:
                assert str(tmp_path / "a.png") in str(error)


def test_reading_one_pair_tells_what_the_journal_notes(make):
    assert list(read_pair(open_source("folder", make(BINARY)), 0, H, W)[2]) == ["sha256"]


@pytest.mark.parametrize("resize", ["pad", "crop"])
def test_what_is_put_around_an_image_is_no_void(make, tmp_path, resize):
    "Not in the numbers of a warning, and not as a reason for one."
    source = lambda about, label: open_source("folder", make(about, label))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(source(THREE, truth), tmp_path / "cache", 18, 40, resize=resize, threads=1)
        prepare(source(BINARY, lambda i: truth(i) * 0), tmp_path / "one", 18, 40, resize=resize, threads=1)
    with pytest.raises(ValueError, match=r"only class 'background' occurs .* 50\.0% of the pixels are void"):
        prepare(source(BINARY, lambda i: truth(i) * 255), tmp_path / "void", 18, 40, resize=resize, threads=1)
