"""Time and memory of every loss, as ratios to torch's own cross-entropy.

    python benchmarks/losses.py [--device cuda] [--quick] [--out FILE]

The table goes to benchmarks/results/losses.csv, or losses-cuda.csv; with --quick it is only printed.

A row is one loss in one cell (classes, pixels, eager or compiled, layout, dtype), forward and backward:

- `time_ratio`: time divided by that of eager `F.cross_entropy(logits, target, ignore_index=255)`. All losses of a cell
  take turns, in an order shuffled anew in each repetition, and a ratio is taken within a repetition: on a noisy machine
  only times taken side by side compare. Median over the repetitions, `time_ratio_low` and `_high` are the quartiles.
  The eager row of torch's cross_entropy is the peer measured a second time: how far it is from 1 is the noise.
- `memory_ratio`: peak memory above logits and target, the gradient of the logits included, divided by the peer's.
- `peer_ms`: the peer's time. `copies_ms`: time to copy the logits three times, which no loss can beat by much: it has
  to read the logits twice (forward, backward) and to write their gradient.
- `kernels`: kernels launched on the GPU by a forward and backward pass. `aten_calls`: operators of torch called by it,
  without those that operators call in turn; on the CPU, which launches no kernels, it is the number to compare.
- `host_waits`: how often a pass makes the host wait for the GPU, which then idles until the host has caught up.
- `graph_breaks`: where torch.compile falls back to Python. `device`: cpu, or the name of the GPU. `note`: why a row has
  no numbers, or that a loss makes the host wait.

Beside the losses of pat stand PAT in ten plain lines over torch's cross-entropy, PAT written with one-hot targets, as
published, and the losses of segmentation-models-pytorch and kornia (`pip install kornia`). bfloat16 means logits in
bfloat16 under autocast, as in mixed-precision training.
"""

import argparse
import contextlib
import csv
import math
import os
import random
import re
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pat.baselines import build_loss, known_losses

try:
    import kornia.losses as kornia
except ImportError:
    raise SystemExit("kornia is missing, which this benchmark compares with: pip install kornia") from None

IGNORE = 255
COLUMNS = [
    *("loss", "options", "library", "mode", "layout", "dtype", "classes", "height", "width"),
    *("time_ratio", "time_ratio_low", "time_ratio_high", "memory_ratio", "peer_ms", "copies_ms"),
    *("kernels", "aten_calls", "host_waits", "graph_breaks"),
    *("device", "threads", "torch", "repetitions", "note"),
]
PAT_OPTIONS = [{"beta": beta, "temperature": T} for beta in ("inverse", "exponential") for T in (1, 2)]
LAUNCH = re.compile(r"(cuda|cu|hip)\w*Launch\w*Kernel")  # names of the runtime's functions that launch one
peer = partial(F.cross_entropy, ignore_index=IGNORE)


class Cell(NamedTuple):
    classes: int
    height: int
    width: int
    mode: str = "eager"  # or "compile"
    layout: str = "NCHW"  # or "channels_last"
    dtype: str = "float32"  # or "bfloat16"

    @property
    def size(self) -> int:  # number of logits
        return self.classes * self.height * self.width


class Entry(NamedTuple):
    loss: str
    library: str
    options: str
    function: Callable[[Tensor, Tensor], Tensor]  # of logits and target


def cells(quick: bool) -> list[Cell]:
    "All losses over the whole grid, smallest cells first; layouts, dtypes and compilation (a chosen few) over less."
    if quick:
        plain, rest = [(3, 128, 128), (20, 128, 128)], [(3, 128, 128)]
    else:
        plain = [(C, H, W) for C in (3, 20, 150) for H, W in ((128, 128), (256, 512), (512, 1024))]
        rest = [(3, 512, 1024), (20, 512, 1024), (150, 256, 512)]
    grid = [Cell(*shape) for shape in plain]
    for option in ({"layout": "channels_last"}, {"dtype": "bfloat16"}, {"mode": "compile"}):
        grid += [Cell(*shape, **option) for shape in rest]
    return sorted(grid, key=lambda cell: cell.size)


def pat_one_hot(logits: Tensor, target: Tensor, kappa: float = 1.0) -> Tensor:
    "PAT's loss as published: sums over classes of products with a one-hot target, mean over everything."
    labelled = target != IGNORE
    one_hot = F.one_hot(target * labelled, logits.shape[1]).permute(0, 3, 1, 2) * labelled[:, None]
    p = one_hot * F.softmax(logits, 1)
    return (-torch.exp(kappa * (1 - p)) / 2 * one_hot * F.log_softmax(logits, 1)).mean()


def pat_plain(logits: Tensor, target: Tensor, kappa: float = 3.0, alpha: float = 0.5) -> Tensor:
    "PAT in the plain lines of nbs/01_losses.ipynb, over torch's own cross-entropy."
    labelled, nll = target != IGNORE, F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    beta = torch.exp(kappa * (1 - torch.exp(-nll))) / 2
    index = torch.where(labelled, target, 0).flatten(1)
    sizes = nll.new_zeros(logits.shape[:2]).scatter_add_(1, index, labelled.flatten(1).to(nll.dtype))
    power = sizes.clamp(min=1).pow(-alpha).gather(1, index).view_as(nll) * labelled
    weight = (sizes > 0).sum(1).view(-1, 1, 1) * power / power.sum((1, 2), keepdim=True)
    return (weight * beta * nll).sum() / len(logits)


def kornia_lovasz(logits: Tensor, target: Tensor) -> Tensor:
    "kornia's Lovasz-softmax knows no label to ignore."
    return kornia.lovasz_softmax_loss(logits, target.masked_fill(target == IGNORE, 0))


def entries(cell: Cell, device: torch.device) -> list[Entry]:
    "The losses to measure in a cell: all of them, or the few that stand for the others."
    everything = cell.mode == "eager" and cell.layout == "NCHW" and cell.dtype == "float32"
    counts = {  # a long tail; the values do not change the work
        "class_pixels": torch.logspace(9, 5, cell.classes).long(),
        "class_images": torch.linspace(1000, 10, cell.classes).long(),
    }
    found = [Entry("cross_entropy", "torch", "", peer)]
    for name in known_losses() if everything else ("ce", "focal", "pat"):
        for options in PAT_OPTIONS if name == "pat" else [{}]:
            loss = build_loss(name, **counts, **options).to(device)
            found.append(Entry(name, "pat", " ".join(f"{k}={v}" for k, v in options.items()), loss))
    found.append(Entry("pat-plain", "plain torch", "beta=exponential temperature=1", pat_plain))
    if everything:
        for name in ("Dice", "Focal", "Lovasz", "Tversky"):
            loss = getattr(smp.losses, f"{name}Loss")("multiclass", ignore_index=IGNORE)
            found.append(Entry(name.lower(), "smp", "", loss))
        ignore = {"ignore_index": IGNORE}
        found += [
            Entry("dice", "kornia", "", partial(kornia.dice_loss, average="macro", **ignore)),
            Entry("focal", "kornia", "", partial(kornia.focal_loss, alpha=None, reduction="mean", **ignore)),
            Entry("lovasz", "kornia", "ignored pixels are class 0", kornia_lovasz),
            Entry("tversky", "kornia", "", partial(kornia.tversky_loss, alpha=0.5, beta=0.5, **ignore)),
            Entry("pat-one-hot", "as published", "beta=exponential temperature=1", pat_one_hot),
        ]
    return found


def inputs(cell: Cell, device: torch.device) -> tuple[Tensor, Tensor]:
    "Random logits, and a target of square masks with a block of 10 % of the pixels to ignore."
    torch.manual_seed(0)
    C, H, W = cell[:3]
    layout = torch.channels_last if cell.layout == "channels_last" else torch.contiguous_format
    logits = torch.randn(1, C, H, W, device=device, dtype=getattr(torch, cell.dtype)).contiguous(memory_format=layout)
    masks = torch.randint(C, (1, H // 8, W // 8), device=device)
    target = masks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    target[:, : H // 4, : W * 2 // 5] = IGNORE
    return logits.requires_grad_(), target


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def seconds(function, number: int, device: torch.device) -> float:
    "Time of one call, from `number` of them."
    synchronize(device)
    start = time.perf_counter()
    for _ in range(number):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / number


@contextlib.contextmanager
def quiet():
    "Mute what the profiler writes to standard error, below Python."
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def peak_of(prof: profile) -> int:
    "Bytes at the peak of what was allocated on the CPU in a profile."
    now = peak = 0
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):  # signed: allocated or freed
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def called_by_operator(event) -> bool:
    "Whether a profiled event happens inside an operator of torch."
    parent = event.cpu_parent
    return parent is not None and (parent.name.startswith("aten::") or called_by_operator(parent))


def profiled(function, device: torch.device) -> dict[str, float]:
    "Of one call: bytes at the peak above what was allocated before, operators called, kernels launched."
    gpu = device.type == "cuda"
    if gpu:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if gpu else [ProfilerActivity.CPU]
    with quiet(), profile(activities=activities, profile_memory=not gpu) as prof:
        function()
        synchronize(device)
    events = prof.events()
    launches = sum(bool(LAUNCH.match(event.name)) for event in events)
    return {
        "memory": torch.cuda.max_memory_allocated(device) - before if gpu else peak_of(prof),
        "aten_calls": sum(event.name.startswith("aten::") and not called_by_operator(event) for event in events),
        "kernels": launches or math.nan,  # none: a CPU, or a GPU whose counters the profiler may not read
    }


def host_waits(function, device: torch.device) -> float:
    "How often one call makes the host wait for the GPU."
    if device.type != "cuda":
        return math.nan
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def prepare(cell: Cell, device: torch.device) -> tuple[dict, dict]:
    "A row without numbers for each loss of a cell; the forward and backward passes that take turns, by the same keys."
    logits, target = inputs(cell, device)
    copy = torch.empty_like(logits)

    def step(function):
        with torch.autocast(device.type, torch.bfloat16, enabled=cell.dtype == "bfloat16"):
            loss = function(logits, target)
        loss.backward()
        logits.grad = None

    def copies():
        for _ in range(3):
            copy.copy_(logits.detach())

    found = {entry[:3]: entry for entry in entries(cell, device)}
    functions = {key: entry.function for key, entry in found.items()}
    row = dict.fromkeys(COLUMNS, math.nan) | cell._asdict() | {"device": device_name(device), "note": ""}
    row |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    rows = {key: row | entry._asdict() for key, entry in found.items()}
    if cell.mode == "compile":  # all are explained before any is compiled: `explain` throws away what was compiled
        for key, function in functions.items():
            with contextlib.suppress(Exception):  # compiling will fail too, and leave a note
                rows[key]["graph_breaks"] = torch._dynamo.explain(function)(logits, target).graph_break_count
        functions = {key: torch.compile(function, dynamic=False) for key, function in functions.items()}
    runs = {key: partial(step, function) for key, function in functions.items()}
    return rows, runs | {"peer": partial(step, peer), "copies": copies}


def measure(cell: Cell, args: argparse.Namespace, slow: dict) -> list[dict]:
    "The rows of a cell. `slow` keeps each loss's seconds per logit in the last cell, to tell how long this one takes."
    device = torch.device(args.device)
    rows, runs = prepare(cell, device)
    profiles, once = {}, {}  # what `profiled` counted, seconds of a call
    for key, run in runs.items():
        call = slow.get((key, cell.mode), 0) * cell.size
        try:
            if call <= args.slow or key not in rows:
                if cell.mode == "compile":
                    run()
                profiles[key] = profiled(run, device)  # a first call; the timed ones find everything warm
                call = seconds(run, 1, device)
                slow[key, cell.mode] = call / cell.size
            if call <= args.slow or key not in rows:
                profiles[key]["host_waits"] = host_waits(run, device)
                once[key] = call
            else:
                rows[key]["note"] = f"left out: a call takes about {call:.1f} s"
        except Exception as error:  # a compiler or a foreign loss that fails must not end the run
            if key not in rows:
                raise
            rows[key]["note"] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    calls = {key: math.ceil(0.02 / once[key]) for key in once}  # shorter times are noise
    repetitions = int(args.seconds_per_cell / sum(calls[key] * once[key] for key in once))
    repetitions = min(args.repetitions, max(3, repetitions))

    times, order = {key: [] for key in once}, list(once)
    for _ in range(repetitions):
        random.shuffle(order)
        for key in order:
            times[key].append(seconds(runs[key], calls[key], device))
    times = {key: torch.tensor(values, dtype=torch.float64) for key, values in times.items()}
    for key, row in rows.items():
        row |= {"peer_ms": 1e3 * times["peer"].median().item(), "copies_ms": 1e3 * times["copies"].median().item()}
        if key in once:
            quartiles = (times[key] / times["peer"]).quantile(torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64))
            row |= dict(zip(("time_ratio", "time_ratio_low", "time_ratio_high"), quartiles.tolist(), strict=True))
            row |= {"memory_ratio": profiles[key]["memory"] / profiles["peer"]["memory"], "repetitions": repetitions}
            row |= {column: profiles[key][column] for column in ("kernels", "aten_calls", "host_waits")}
            if row["host_waits"] > 0:
                row["note"] = f"makes the host wait for the GPU, {row['host_waits']} times a pass"
    return [{column: row[column] for column in COLUMNS} for row in rows.values()]


def default_out(device: torch.device) -> Path:
    "Tables of a GPU do not take the place of the CPU's."
    return Path("benchmarks/results") / ("losses.csv" if device.type == "cpu" else f"losses-{device.type}.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="table to write; default: see the top of this file")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repetitions", type=int, default=15, help="at most, in each cell")
    parser.add_argument("--seconds-per-cell", type=float, default=15, help="fewer repetitions beyond, but at least 3")
    parser.add_argument("--slow", type=float, default=3, help="leave a loss out where one call takes more seconds")
    parser.add_argument("--memory", type=float, default=8, help="leave out the cells that may need more GB")
    parser.add_argument("--quick", action="store_true", help="the smallest cells only, to see that it runs")
    args = parser.parse_args()
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch sees no GPU on this machine")
    out = args.out or (None if args.quick else default_out(torch.device(args.device)))
    unfinished = Path(os.devnull)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = out.with_name(out.name + ".part")
    random.seed(0)
    # glibc gives memory back to the system eagerly until a process has freed a large array, as every training has
    torch.empty(31 << 20, dtype=torch.uint8)
    start, slow = time.perf_counter(), {}
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for cell in cells(args.quick):
            if cell.size * 4 * 20 > args.memory * 1e9:  # the hungriest hold 15 to 20 arrays of the logits' size
                print(*cell, "left out: --memory")
                continue
            rows = measure(cell, args, slow)
            writer.writerows(rows)
            file.flush()
            print(*cell, f"{time.perf_counter() - start:.0f} s", flush=True)
            for row in rows:
                counted = "aten_calls" if math.isnan(row["kernels"]) else "kernels"
                print(
                    f"  {row['library']:12} {row['loss']:18} {row['options']:30} time {row['time_ratio']:6.2f} "
                    f"memory {row['memory_ratio']:5.2f} {counted} {row[counted]:4} {row['note']}"
                )
    if out:
        unfinished.replace(out)


if __name__ == "__main__":
    main()
