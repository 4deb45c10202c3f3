"""`python datasets/get.py DATASET FOLDER`: writes datasets/DATASET, as a profile reads it, from the original.

clothing         FOLDER is a copy of https://github.com/bearpaw/clothing-co-parsing: photos/0001.jpg and so on, and
                 annotations/pixel-level/0001.mat, whose `groundtruth` (h, w) has the number of each pixel's class
vocalfolds       a copy of https://github.com/imesluh/vocalfolds: img/patient1/seq1/0001.png and so on, and annot/,
                 whose pixels hold the number of their class
oxford_pet_part  datasets/oxford_pet, of which three breeds are taken
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat
from tqdm import tqdm

DATASETS = Path(__file__).parent
PROFILES = DATASETS.parent / "profiles"
PARTS = ("train", "train", "train", "val", "test")  # of every five photos in the order of their names
BLOCKS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # of each sequence, in the order of its frames
BREEDS = ("Abyssinian", "Bengal", "american_bulldog")


def write_pair(photo: Path, label: Image.Image, to: tuple[Path, Path], longest: int) -> None:
    "Write a photo as JPEG and its label map as PNG, with at most `longest` pixels on a side."
    for image, file, resample in (
        (Image.open(photo).convert("RGB"), to[0].with_suffix(".jpg"), Image.Resampling.LANCZOS),
        (label, to[1].with_suffix(".png"), Image.Resampling.NEAREST),
    ):
        scale = min(1, longest / max(image.size))
        file.parent.mkdir(parents=True, exist_ok=True)
        image.resize((round(image.width * scale), round(image.height * scale)), resample).save(file, quality=95)


def write_list(file: Path, lines: list[str]) -> None:
    "A line for each, of a list that lays down a split."
    file.write_text("".join(f"{line}\n" for line in lines))


def found(files: Iterator[Path], told: str) -> list[Path]:
    "The files in the order of their names. `FileNotFoundError` if there are none."
    if not (some := sorted(files)):
        raise FileNotFoundError(f"{told}: name the dataset's own folder")
    return some


def clothing(source: Path, folder: Path) -> None:
    "Clothing Co-Parsing: images/, labels/, dataset.yaml and the lists of the split."
    annotations = source / "annotations" / "pixel-level"
    files = found(annotations.glob("*.mat"), f"{annotations} holds no .mat file")
    for file in tqdm(files, unit="photo"):
        label = Image.fromarray(loadmat(file)["groundtruth"].astype(np.uint8))
        to = folder / "images" / file.stem, folder / "labels" / file.stem
        write_pair(source / "photos" / f"{file.stem}.jpg", label, to, longest=384)
    for part in sorted(set(PARTS)):
        names = [file.stem for i, file in enumerate(files) if PARTS[i % len(PARTS)] == part]
        write_list(folder / f"{part}.txt", names)
    shutil.copy(PROFILES / "clothing" / "dataset.yaml", folder)


def vocalfolds(source: Path, folder: Path) -> None:
    "Vocal folds: images/, labels/, dataset.yaml, and lists that cut each sequence into three blocks."
    parts: dict[str, list[str]] = {part: [] for part in BLOCKS}
    sequences = found((source / "annot").glob("patient*/seq*"), f"{source / 'annot'} holds no patient1/seq1")
    for sequence in tqdm(sequences, unit="sequence"):
        files = sorted(sequence.glob("*.png"))
        names = [f"{sequence.parent.name}_{sequence.name}_{file.stem}" for file in files]
        for file, name in zip(files, names, strict=True):
            to = folder / "images" / name, folder / "labels" / name
            write_pair(source / "img" / file.relative_to(source / "annot"), Image.open(file), to, longest=256)
        for part, (start, stop) in BLOCKS.items():
            parts[part] += names[round(start * len(names)) : round(stop * len(names))]
    for part, names in parts.items():
        write_list(folder / f"{part}.txt", names)
    shutil.copy(PROFILES / "classes" / "vocalfolds.yaml", folder / "dataset.yaml")


def oxford_pet_part(source: Path, folder: Path) -> None:
    "Three breeds of Oxford-IIIT Pet with their official split, in the layout of the original."
    for part in ("trainval", "test"):
        lines = (source / "annotations" / f"{part}.txt").read_text().splitlines()
        lines = [line for line in lines if line.split()[0].rsplit("_", 1)[0] in BREEDS]
        for name in tqdm([line.split()[0] for line in lines], unit="photo"):
            trimap = Image.open(source / "annotations" / "trimaps" / f"{name}.png")
            to = folder / "images" / name, folder / "annotations" / "trimaps" / name
            write_pair(source / "images" / f"{name}.jpg", trimap, to, longest=320)
        write_list(folder / "annotations" / f"{part}.txt", lines)


WRITERS = {"clothing": clothing, "vocalfolds": vocalfolds, "oxford_pet_part": oxford_pet_part}

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in WRITERS:
        sys.exit(__doc__)
    target = DATASETS / sys.argv[1]
    if target.exists():
        sys.exit(f"error: {target} exists already: remove it first")
    scratch = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        WRITERS[sys.argv[1]](Path(sys.argv[2]), scratch)
        scratch.rename(target)
    except OSError as error:
        sys.exit(f"error: {error}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(target)
