"""`python profiles/clothing/get.py path/to/clothing-co-parsing`: its 1004 labelled photos as this profile reads them.

The folder is a copy of https://github.com/bearpaw/clothing-co-parsing: photos/0001.jpg and so on, and
annotations/pixel-level/0001.mat, whose variable `groundtruth` (h, w) has the number of each pixel's class.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat
from tqdm import tqdm

HERE = Path(__file__).parent
LONGEST = 384  # pixels of the longer side: the profile trains at 128x96
PARTS = ("train", "train", "train", "val", "test")  # of every five photos in the order of their names


def shrunk(image: Image.Image, resample: Image.Resampling) -> Image.Image:
    "The image with at most `LONGEST` pixels on a side."
    scale = min(1, LONGEST / max(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), resample)


def convert(source: Path, folder: Path) -> None:
    "Write images/, labels/, dataset.yaml and the lists of the split. Errors name a file that is missing."
    annotations = sorted((source / "annotations" / "pixel-level").glob("*.mat"))
    if not annotations:
        raise FileNotFoundError(
            f"{source / 'annotations/pixel-level'} holds no .mat file: name the dataset's own folder"
        )
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for file in tqdm(annotations, unit="photo"):
        label = Image.fromarray(loadmat(file)["groundtruth"].astype(np.uint8))
        photo = Image.open(source / "photos" / f"{file.stem}.jpg").convert("RGB")
        shrunk(photo, Image.Resampling.LANCZOS).save(folder / "images" / f"{file.stem}.jpg", quality=95)
        shrunk(label, Image.Resampling.NEAREST).save(folder / "labels" / f"{file.stem}.png")
    for part in sorted(set(PARTS)):
        names = [file.stem for i, file in enumerate(annotations) if PARTS[i % len(PARTS)] == part]
        (folder / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
    shutil.copy(HERE / "dataset.yaml", folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    target = HERE.parent.parent / "datasets" / "clothing"
    if target.exists():
        sys.exit(f"error: {target} exists already: remove it first")
    scratch = target.with_name("clothing.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        convert(Path(sys.argv[1]), scratch)
        scratch.rename(target)
    except OSError as error:
        sys.exit(f"error: {error}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{target}: now `make repro PROFILE=clothing`")
