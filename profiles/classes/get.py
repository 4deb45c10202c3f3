"""`python profiles/classes/get.py path/to/vocalfolds`: its 536 frames as this profile reads them.

The folder is a copy of https://github.com/imesluh/vocalfolds: img/patient1/seq1/0001.png and so on, and annot/ alike,
whose pixels hold the number of their class. Also writes datasets/oxford_pet_part, three breeds of datasets/oxford_pet.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).parent
DATASETS = HERE.parent.parent / "datasets"
BLOCKS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # of each sequence, in the order of its frames
BREEDS = ("Abyssinian", "Bengal", "american_bulldog")
PHOTO, FRAME = 320, 256  # pixels of the longer side


def shrunk(file: Path, longest: int, resample: Image.Resampling) -> Image.Image:
    "The image with at most `longest` pixels on a side."
    image = Image.open(file)
    scale = min(1, longest / max(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), resample)


def frames(source: Path, folder: Path) -> None:
    "Vocal folds: images/, labels/, dataset.yaml, and lists that cut each sequence into three blocks."
    sequences = sorted((source / "annot").glob("patient*/seq*"))
    if not sequences:
        raise FileNotFoundError(f"{source / 'annot'} holds no patient1/seq1: name the dataset's own folder")
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    parts: dict[str, list[str]] = {part: [] for part in BLOCKS}
    for sequence in tqdm(sequences, unit="sequence"):
        files = sorted(sequence.glob("*.png"))
        names = [f"{sequence.parent.name}_{sequence.name}_{file.stem}" for file in files]
        for file, name in zip(files, names, strict=True):
            frame = source / "img" / file.relative_to(source / "annot")
            photo = shrunk(frame, FRAME, Image.Resampling.LANCZOS).convert("RGB")
            photo.save(folder / "images" / f"{name}.jpg", quality=95)
            shrunk(file, FRAME, Image.Resampling.NEAREST).save(folder / "labels" / f"{name}.png")
        for part, (start, stop) in BLOCKS.items():
            parts[part] += names[round(start * len(names)) : round(stop * len(names))]
    for part, members in parts.items():
        (folder / f"{part}.txt").write_text("".join(f"{name}\n" for name in members))
    shutil.copy(HERE / "vocalfolds.yaml", folder / "dataset.yaml")


def pets(source: Path, folder: Path) -> None:
    "Three breeds of Oxford-IIIT Pet with their official split, photos and trimaps shrunk."
    for kind in ("images", "annotations/trimaps"):
        (folder / kind).mkdir(parents=True)
    for part in ("trainval", "test"):
        lines = (source / "annotations" / f"{part}.txt").read_text().splitlines()
        lines = [line for line in lines if line.split()[0].rsplit("_", 1)[0] in BREEDS]
        (folder / "annotations" / f"{part}.txt").write_text("".join(f"{line}\n" for line in lines))
        for name in tqdm([line.split()[0] for line in lines], unit="photo"):
            photo = shrunk(source / "images" / f"{name}.jpg", PHOTO, Image.Resampling.LANCZOS)
            photo.convert("RGB").save(folder / "images" / f"{name}.jpg", quality=95)
            trimap = shrunk(source / "annotations/trimaps" / f"{name}.png", PHOTO, Image.Resampling.NEAREST)
            trimap.save(folder / "annotations/trimaps" / f"{name}.png")


def make(writer, source: Path, target: Path) -> None:
    "What `writer` makes of `source`, whole or not at all."
    if target.exists():
        sys.exit(f"error: {target} exists already: remove it first")
    scratch = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        writer(source, scratch)
        scratch.rename(target)
    except OSError as error:
        sys.exit(f"error: {error}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make(frames, Path(sys.argv[1]), DATASETS / "vocalfolds")
    make(pets, DATASETS / "oxford_pet", DATASETS / "oxford_pet_part")
