"Small datasets made on disk in their real formats: real PNG, JPEG and MATLAB files, 24 x 18 pixels unless said."

import h5py
import numpy as np
import yaml
from PIL import Image
from scipy.io import savemat

from pat.datasets import NYUV2

SIZE = (24, 18)  # pixels of the files, width and height
NAMES, COLOURS = ["road", "car", "sign"], [[128, 64, 128], [64, 0, 128], [192, 128, 128]]  # of the folder format


def pixels(seed, values=(0, 1, 2), size=SIZE):
    "A label map of blobs 3 pixels wide, with every value in it; or an image where `values` is 'RGB'."
    rng = np.random.default_rng(seed)
    if values == "RGB":
        return rng.integers(256, size=(size[1], size[0], 3)).astype(np.uint8)
    label = np.kron(rng.choice(values, (size[1] // 3, size[0] // 3)), np.ones((3, 3), np.uint16))
    label.flat[: len(values)] = values
    return label.astype(np.uint8 if max(values) < 256 else np.uint16)


def draw(path, seed, values=(0, 1, 2), size=SIZE, format=None):
    "`pixels` in a file."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, values, size)).save(path, format)


def make_folder(root, images=10, ignore_index=255, size=SIZE):
    "The folder format: images of two kinds of file, labels with and without pixels that do not count."
    for i in range(images):
        draw(root / "images" / f"{i:02d}.{'png' if i % 2 else 'jpg'}", i, "RGB", size)
        draw(root / "labels" / f"{i:02d}.png", i, (0, 1, 2, ignore_index) if i % 3 else (0, 1, 2), size)
    about = {"names": NAMES, "colours": COLOURS, "ignore_index": ignore_index}
    (root / "dataset.yaml").write_text(yaml.safe_dump(about))
    return root


def make_camvid(root, sizes=(("train", 5), ("val", 2), ("test", 3))):
    "The SegNet authors' layout; the lists hold the paths of the authors' own machine."
    for split, images in sizes:
        lines = []
        for i in range(images):
            name = f"0001TP_{i:06d}.png"
            draw(root / split / name, i, "RGB")
            draw(root / f"{split}annot" / name, i, range(12))
            lines.append(f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n")
        (root / f"{split}.txt").write_text("".join(lines))
    return root


def make_oxford_pet(root, trainval=10, test=4):
    "Oxford-IIIT Pet: JPEG images, of which one is a GIF in truth, trimaps of 1, 2, 3, and files that lie about."
    breeds = ("Abyssinian", "beagle", "Egyptian_Mau")
    (root / "annotations").mkdir(parents=True)
    start = 0
    for name, images in (("trainval", trainval), ("test", test)):
        lines = []
        for i in range(start, start + images):
            breed = i % len(breeds)
            stem, size = f"{breeds[breed]}_{i}", (24 + 3 * (i % 2), 18)  # every photograph has a size of its own
            draw(root / "images" / f"{stem}.jpg", i, "RGB", size, "GIF" if i == 1 else "JPEG")
            draw(root / "annotations" / "trimaps" / f"{stem}.png", i, (1, 2, 3), size)
            lines.append(f"{stem} {breed + 1} {1 + stem[0].islower()} {i + 1}\n")
        (root / "annotations" / f"{name}.txt").write_text("".join(lines))
        start += images
    (root / "annotations" / "list.txt").write_text("#Image CLASS-ID SPECIES BREED ID\n")
    (root / "annotations" / "trimaps" / "._Abyssinian_0.png").write_bytes(b"\0\5\x16\7")
    (root / "images" / "Abyssinian_0.mat").write_bytes(b"")
    return root


CITIES = (("train", ("aachen", "bremen"), 5), ("val", ("lindau",), 3), ("test", ("berlin",), 2))


def make_cityscapes(root, sizes=CITIES):
    "Cityscapes: a folder per city, all 34 ids in each label map; the labels of the folder test hold void only."
    for split, cities, images in sizes:
        for city in cities:
            for i in range(images):
                scene = f"{city}_{i:06d}_000019"
                draw(root / "leftImg8bit" / split / city / f"{scene}_leftImg8bit.png", i, "RGB")
                ids = range(34) if split != "test" else range(4)
                for kind, values in (("labelIds", ids), ("instanceIds", (0, 1)), ("color", "RGB")):
                    draw(root / "gtFine" / split / city / f"{scene}_gtFine_{kind}.png", 100 + i, values)
                (root / "gtFine" / split / city / f"{scene}_gtFine_polygons.json").write_text("{}")
    return root


def write_nyuv2_mat(file, images, labels):
    "nyu_depth_v2_labeled.mat as MATLAB 7.3 writes it, from (N, H, W, 3) uint8 and (N, H, W) uint16."
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w", userblock_size=512) as mat:
        for name, array in (("images", images.transpose(0, 3, 2, 1)), ("labels", labels.swapaxes(1, 2))):
            data = mat.create_dataset(name, data=array, chunks=(1, *array.shape[1:]), compression="gzip")
            data.attrs["MATLAB_class"] = np.bytes_(array.dtype.name)
    with file.open("r+b") as start:
        start.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")


def make_nyuv2(root, train=10, test=4):
    "NYU Depth V2: one HDF5 file with MATLAB's transposed axes, and the split and the class mappings beside it."
    n, labels = train + test, [0, *range(1, 895, 9), 894]
    images = np.stack([pixels(i, "RGB") for i in range(n)])
    write_nyuv2_mat(root / "nyu_depth_v2_labeled.mat", images, np.stack([pixels(i, labels) for i in range(n)]))
    order = np.random.default_rng(7).permutation(n).astype(np.uint16) + 1  # MATLAB counts from 1
    splits = {"trainNdxs": np.sort(order[:train])[:, None], "testNdxs": np.sort(order[train:])[:, None]}
    savemat(root / "splits.mat", splits)
    to40 = (np.arange(894) % 40 + 1).astype(np.uint8)[None]
    savemat(root / "classMapping40.mat", {"mapClass": to40, "className": cells(f"class {c}" for c in range(40))})
    to13 = (np.arange(40)[::-1] % 13 + 1).astype(np.uint8)[None]
    savemat(root / "class13Mapping.mat", {"classMapping13": {"labels13": to13, "classNames": cells(NYUV2)}})
    return root


def cells(names):
    "A row of names as MATLAB stores it."
    names = list(names)
    row = np.empty((1, len(names)), object)
    row[0] = names
    return row
