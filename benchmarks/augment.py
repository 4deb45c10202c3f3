"""What augmentation adds to an epoch of the sample, as ratios to an epoch without.

    python benchmarks/augment.py [--device cuda] [--quick] [--out FILE]

The table goes to benchmarks/results/augment.csv, or augment-cuda.csv; with --quick it is only printed.

A row is one value of `train.augment`. Network, data and batches are those of params.yaml, its first dataset and model.

- `time_ratio`: time of an epoch divided by that of an epoch without augmentation. All rows take turns step by step, in
  an order shuffled anew in each, and a ratio is taken within an epoch: on a noisy machine only times taken side by side
  compare. Median over the epochs, `time_ratio_low` and `_high` are the quartiles. The row without augmentation is
  measured twice: how far it is from 1 is the noise.
- `epoch_ms`: the time itself, median. On the CPU it is that of the process, so that other processes count less; on a
  GPU every step is waited for.
- `library`: pat samples all images of a batch at once; torchvision's transforms draw once for a batch, so they are
  called for one image after the other, on bytes.
"""

import argparse
import csv
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from pat.datasets import Prepared, load_prepared, prepare_dataset
from pat.params import load_params
from pat.training import Trainer, build_trainer, train_step

IGNORE = 255
ALL = {"flip": 0.5, "shift": 0.05, "scale": 0.1, "rotate": 10}
ROWS = [("pat", None), ("pat", {"flip": 0.5}), ("pat", ALL), ("torchvision", ALL)]
COLUMNS = [
    *("library", "flip", "shift", "scale", "rotate", "time_ratio", "time_ratio_low", "time_ratio_high", "epoch_ms"),
    *("steps", "batch_size", "height", "width", "model", "device", "threads", "torch", "repetitions"),
]


class OneByOne:
    "Batches that torchvision changes image by image."

    def __init__(self, batches):
        self.batches = batches
        self.change = v2.Compose([
            v2.RandomHorizontalFlip(ALL["flip"]),
            v2.RandomAffine(
                degrees=ALL["rotate"],
                translate=(ALL["shift"], ALL["shift"]),
                scale=(1 - ALL["scale"], 1 + ALL["scale"]),
                interpolation=v2.InterpolationMode.BILINEAR,
                fill={tv_tensors.Image: 127, tv_tensors.Mask: IGNORE},
            ),
        ])  # fmt: skip

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.batches:
            pairs = zip(images.permute(0, 3, 1, 2), labels, strict=True)
            changed = [self.change(tv_tensors.Image(image), tv_tensors.Mask(label)) for image, label in pairs]
            images, labels = (torch.stack(part) for part in zip(*changed, strict=True))
            yield images.permute(0, 2, 3, 1), labels


def trainer(library: str, augment: dict | None, data: Prepared, params: dict, device: str) -> Trainer:
    "A run of the sample with or without augmentation."
    options = params["train"] | {"accelerator": device, "augment": augment if library == "pat" else None}
    model = next(iter(params["models"].values()))
    made = build_trainer({"seed": 0, "model_options": model, "loss_options": {"name": "ce"}, "train": options}, data)
    if library == "torchvision":
        made.batches = OneByOne(made.batches)
    return made


def epoch(trainers: list[Trainer], device: str) -> list[float]:
    "Seconds of an epoch of each trainer. They take turns with every step: load a batch, change it, train with it."
    clock = time.perf_counter if device == "cuda" else time.process_time
    batches, times = [iter(made.batches) for made in trainers], [0.0] * len(trainers)
    for _ in range(len(trainers[0].batches)):
        for index in random.sample(range(len(trainers)), len(trainers)):
            start = clock()
            train_step(trainers[index], next(batches[index]))
            if device == "cuda":
                torch.cuda.synchronize()
            times[index] += clock() - start
    return times


def measure(data: Prepared, params: dict, device: str, repetitions: int) -> list[dict]:
    "The rows of the table."
    entries = [ROWS[0], *ROWS]  # the first is what the others are divided by
    trainers = [trainer(*entry, data, params, device) for entry in entries]
    epoch(trainers, device)  # a first one; the timed ones find everything warm
    table = torch.tensor([epoch(trainers, device) for _ in range(repetitions)], dtype=torch.float64)
    ratios = (table / table[:, :1]).quantile(torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64), 0).T
    about = {
        "steps": len(trainers[0].batches),
        "batch_size": params["train"]["batch_size"],
        **dict(zip(("height", "width"), data.labels.shape[1:], strict=True)),
        "model": next(iter(params["models"])),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repetitions": repetitions,
    }
    rows = []
    for (library, augment), ratio, ms in zip(entries, ratios, 1000 * table.median(0).values, strict=True):
        measured = dict(zip(COLUMNS[5:8], ratio.tolist(), strict=True))
        rows.append({"library": library, **(augment or {}), **measured, "epoch_ms": ms.item(), **about})
    return rows[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="table to write; default: see the top of this file")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="two repetitions, to see that it runs")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU on this machine")
    name = "augment.csv" if args.device == "cpu" else f"augment-{args.device}.csv"
    out = args.out or (None if args.quick else Path("benchmarks/results") / name)
    random.seed(0)
    params = load_params("params.yaml")
    with tempfile.TemporaryDirectory() as folder:
        prepare_dataset(next(iter(params["datasets"].values())), f"{folder}/cache")
        rows = measure(load_prepared(f"{folder}/cache"), params, args.device, 2 if args.quick else args.repetitions)
    for row in rows:
        changes = {name: row[name] for name in ALL if name in row}
        print(f"{row['library']:12} {changes or 'none'!s:66} time {row['time_ratio']:.3f}")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
