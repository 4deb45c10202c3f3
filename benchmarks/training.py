"""How fast the loop trains, against batches that lie in memory and against a usual script; and its memory.

    python benchmarks/training.py [--device cuda] [--quick]

The tables go to benchmarks/results/training.csv and training-memory.csv, with -cuda on a GPU; with --quick they are
only printed. CamVid's rows need datasets/camvid. It takes about ten minutes on a CPU.

Speed: a row is a way to train the first network of a profile, with its size of images and batches.

- `way`: `in memory` trains on batches that were made beforehand, so it loads nothing: the limit of any loop. `pat` is
  this package. `pat, compiled` is the same with `train.compile`; the first step shows what compiling takes.
  `usual script` decodes a PNG for each image and label, resizes both, makes the labels one-hot, and computes a mIoU in
  each step, as many published trainings do; in one process, as the others.
- `ratio`: images per second divided by those of `in memory`. All ways take turns step by step, in an order shuffled
  anew in each, and a ratio is taken within an epoch: on a noisy machine only times taken side by side compare. Median
  over the epochs, `ratio_low` and `ratio_high` are the quartiles.
- `images_per_s`: median. On the CPU the time is that of the process, so that other processes count less.
- `first_step_s`: wall time of the first step.

Memory: the sample's first run for 50 epochs; MiB that the process holds at the end of each epoch.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pat.datasets import Prepared, load_prepared, prepare_dataset
from pat.models import build_model
from pat.params import ROOT, load_params
from pat.training import (
    Trainer,
    begin_epoch,
    build_trainer,
    checkpoint_state,
    layout,
    one_epoch,
    save_checkpoint,
    to_device,
    train_step,
)  # fmt: skip

COLUMNS = [
    *("data", "way", "ratio", "ratio_low", "ratio_high", "images_per_s", "first_step_s"),
    *("model", "batch_size", "height", "width", "device", "threads", "torch", "epochs"),
]
FILES = {  # profile -> folders of the training images and their labels
    "sample": ("data/streets/images", "data/streets/labels"),
    "camvid": ("datasets/camvid/train", "datasets/camvid/trainannot"),
}


class Decoded(Dataset):
    "Images and one-hot labels from files."

    def __init__(self, images: Path, labels: Path, size: tuple[int, int], classes: int, members: int):
        names = sorted(file.name for file in images.glob("*.png"))[:members]
        self.files = [(images / name, labels / name) for name in names]
        self.size, self.classes = size[::-1], classes  # PIL says width first

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = (Image.open(file) for file in self.files[index])
        pixels = np.asarray(image.convert("RGB").resize(self.size, Image.Resampling.BILINEAR), np.float32) / 127.5 - 1
        target = torch.from_numpy(np.asarray(label.resize(self.size, Image.Resampling.NEAREST), np.int64))
        one_hot = F.one_hot(target.clamp(max=self.classes), self.classes + 1)[..., : self.classes]  # void has no class
        return torch.from_numpy(pixels).permute(2, 0, 1), one_hot.permute(2, 0, 1).float()


def usual(profile: str, trainer: Trainer) -> tuple[DataLoader, Callable]:
    "Batches and a step, as a usual script has them."
    data, cfg = trainer.data, trainer.cfg
    folders, members = [ROOT / folder for folder in FILES[profile]], len(data.meta["splits"]["train"])
    files = Decoded(*folders, data.labels.shape[1:], data.classes, members)
    model = build_model(classes=data.classes, **trainer.settings["model_options"]).to(trainer.fabric.device)
    model = model.to(memory_format=layout(cfg.channels_last))
    adam = torch.optim.Adam(model.parameters(), lr=cfg.lr)

    def step(batch):
        images, one_hot = (part.to(trainer.fabric.device) for part in batch)
        logits = model(images)
        loss = -(one_hot * logits.log_softmax(1)).sum() / one_hot.sum().clamp(min=1)
        adam.zero_grad()
        loss.backward()
        adam.step()
        predicted = F.one_hot(logits.argmax(1), data.classes).permute(0, 3, 1, 2) * one_hot.sum(1, keepdim=True)
        hit = (predicted * one_hot).sum((0, 2, 3))
        union = predicted.sum((0, 2, 3)) + one_hot.sum((0, 2, 3)) - hit
        return loss.item(), (hit / union)[union > 0].mean().item()

    return DataLoader(files, cfg.batch_size, shuffle=True), step


def in_memory(trainer: Trainer) -> tuple[list, Callable]:
    "Batches that were made beforehand, and a step that only trains."
    device, memory_format = trainer.fabric.device, layout(trainer.cfg.channels_last)
    batches = [to_device(batch, device, memory_format) for batch in trainer.batches]

    def step(batch):
        loss = trainer.loss_fn(trainer.model(batch[0]), batch[1])
        trainer.optimizer.zero_grad()
        trainer.fabric.backward(loss)
        trainer.optimizer.step()

    return batches, step


def ways(profile: str, data: Prepared, params: dict, device: str) -> dict[str, tuple]:
    "Way -> batches and a step."
    model = next(iter(params["models"].values()))
    settings = {"seed": 0, "model_options": model, "loss_options": {"name": "ce"}}
    make = lambda **more: build_trainer(settings | {"train": params["train"] | {"accelerator": device} | more}, data)
    plain, compiled = make(), make(compile=True)
    return {
        "in memory": in_memory(make()),
        "pat": (plain.batches, lambda batch: train_step(plain, batch)),
        "pat, compiled": (compiled.batches, lambda batch: train_step(compiled, batch)),
        "usual script": usual(profile, plain),
    }


def epoch(taken: dict[str, tuple], steps: int, clock: Callable[[], float]) -> dict[str, float]:
    "Seconds of an epoch in each way. They take turns with every step."
    batches: dict[str, Iterator] = {way: iter(each) for way, (each, _) in taken.items()}
    times = dict.fromkeys(taken, 0.0)
    for _ in range(steps):
        for way in random.sample([*taken], len(taken)):
            start = clock()
            taken[way][1](next(batches[way]))
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[way] += clock() - start
    return times


def speed(profile: str, device: str, repetitions: int) -> list[dict]:
    "The rows of a profile."
    params = load_params("params.yaml" if profile == "sample" else f"profiles/{profile}/params.yaml")
    (name, options), size = next(iter(params["datasets"].items())), params["train"]["batch_size"]
    clock = time.perf_counter if device == "cuda" else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        prepare_dataset(options, f"{folder}/cache")
        data = load_prepared(f"{folder}/cache")
        taken = ways(profile, data, params, device)
        steps = len(data.meta["splits"]["train"]) // size
        first = {}
        for way, (batches, step) in taken.items():
            start = time.perf_counter()
            step(next(iter(batches)))
            first[way] = time.perf_counter() - start
        epoch(taken, steps, clock)  # the timed ones find everything warm
        table = [epoch(taken, steps, clock) for _ in range(repetitions)]
    about = {"data": name, "model": next(iter(params["models"])), "batch_size": size, "epochs": repetitions}
    about |= dict(zip(("height", "width"), data.labels.shape[1:], strict=True))
    about |= {"device": torch.cuda.get_device_name() if device == "cuda" else device, "torch": torch.__version__}
    rows = []
    for way in taken:
        low, middle, high = statistics.quantiles([each["in memory"] / each[way] for each in table], n=4)
        seconds = statistics.median(each[way] for each in table)
        measured = {"ratio": middle, "ratio_low": low, "ratio_high": high, "images_per_s": steps * size / seconds}
        measured["first_step_s"] = first[way]
        rounded = {key: round(value, 3) for key, value in measured.items()}
        rows.append({"way": way, **rounded, **about, "threads": torch.get_num_threads()})
        print(f"{name:8} {way:14} {middle:.3f} of in memory [{low:.3f}, {high:.3f}]", flush=True)
    return rows


def memory(device: str, epochs: int) -> list[dict]:
    "MiB after each epoch."
    params, rows = load_params("params.yaml"), []
    model, options = next(iter(params["models"].values())), next(iter(params["datasets"].values()))
    train = params["train"] | {"epochs": epochs, "accelerator": device}
    settings = {"run": "memory", "seed": 0, "model": "first", "model_options": model, "loss_options": {"name": "ce"}}
    with tempfile.TemporaryDirectory() as folder:
        prepare_dataset(options, f"{folder}/cache")
        trainer = build_trainer(settings | {"train": train}, load_prepared(f"{folder}/cache"))
        for number in range(epochs):
            begin_epoch(trainer, number)
            one_epoch(trainer, tqdm(disable=True))
            save_checkpoint(trainer.fabric, Path(folder) / "last.ckpt", checkpoint_state(trainer))
            held = psutil.Process().memory_info().rss / 2**20
            gpu = torch.cuda.memory_allocated() / 2**20 if device == "cuda" else None
            rows.append({"epoch": number + 1, "process_mib": round(held, 1), "gpu_mib": gpu})
    grown = rows[-1]["process_mib"] - rows[len(rows) // 10]["process_mib"]
    print(f"memory after epoch {len(rows)}: {grown:+.1f} MiB since epoch {len(rows) // 10 + 1}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repetitions", type=int, default=7, help="epochs that are timed")
    parser.add_argument("--quick", action="store_true", help="two epochs and the streets, to see that it runs")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU on this machine")
    random.seed(0)
    profiles = [profile for profile, (images, _) in FILES.items() if (ROOT / images).is_dir()]
    held = memory(args.device, 3 if args.quick else 50)  # first: what was free before would hide what is held
    rows = []
    for profile in profiles[: 1 if args.quick else None]:
        rows += speed(profile, args.device, 2 if args.quick else args.repetitions)
    if not args.quick:
        ending = "" if args.device == "cpu" else f"-{args.device}"
        for name, table in (("training", pd.DataFrame(rows)[COLUMNS]), ("training-memory", pd.DataFrame(held))):
            table.to_csv(ROOT / "benchmarks" / "results" / f"{name}{ending}.csv", index=False)


if __name__ == "__main__":
    main()
