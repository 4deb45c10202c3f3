"""How long the trainings of the sample take side by side, against one after the other.

    python benchmarks/jobs.py [--quick] [--out FILE]

The table goes to benchmarks/results/jobs.csv; with --quick it is only printed. It takes about half an hour on two
cores, and means something only on a machine that does nothing else.

The trainings are dealt out into blocks, each with all networks. Every block is trained anew in each way, in an order
that is shuffled from block to block, in a copy of this project. A row is a block in one way:

- `way`: `jobs 1` and `jobs 2` are `python -m pat.jobs` with so many at a time; `dvc repro` is DVC alone, which starts
  papermill, a kernel and all imports for each run.
- `seconds`: wall time of the command, from its start to its end; `runs`: trainings in the block.
- `ratio`: seconds of `jobs 1` for the same block, divided by these.
"""

import argparse
import csv
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pat.params import ROOT, load_params

WAYS = {
    "jobs 1": [sys.executable, "-m", "pat.jobs", "dvc.yaml", "--jobs", "1"],
    "jobs 2": [sys.executable, "-m", "pat.jobs", "dvc.yaml", "--jobs", "2"],
    "dvc repro": [sys.executable, "-m", "dvc", "repro"],
}
COLUMNS = ["block", "way", "runs", "seconds", "ratio", "cores", "processor", "torch"]


def command(project: Path, *words: str) -> float:
    "Seconds that a command takes in `project`, with its copy of the package."
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(project), "PATH": path}
    done = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - start


def copy_of_project(folder: Path) -> Path:
    "A project of its own, in which everything but the trainings is done."
    for name in ("pat", "nbs", "data", "dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    command(folder, sys.executable, "-m", "dvc", "init", "-q")
    command(folder, *WAYS["jobs 1"], "prepare@streets")
    return folder


def processor() -> str:
    "What this machine calls its processor."
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")


def train(project: Path, way: str, runs: list[str]) -> float:
    "Seconds that the trainings of a block take."
    shutil.rmtree(project / "results/sample/runs", ignore_errors=True)
    shutil.rmtree(project / "checkpoints", ignore_errors=True)
    return command(project, *WAYS[way], *(f"train@{run}" for run in runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="table to write; default: benchmarks/results/jobs.csv")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--measured", type=int, help="blocks that are measured; default: all")
    parser.add_argument("--quick", action="store_true", help="two runs, to see that it works")
    args = parser.parse_args()
    random.seed(0)
    names = list(load_params("params.yaml")["runs"])
    blocks = [names[:2]] if args.quick else [names[i :: args.blocks] for i in range(args.blocks)][: args.measured]
    about = {"cores": len(os.sched_getaffinity(0)), "processor": processor(), "torch": torch.__version__}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        project = copy_of_project(Path(folder))
        for number, runs in enumerate(blocks):
            seconds = {way: train(project, way, runs) for way in random.sample([*WAYS], len(WAYS))}
            for way, took in seconds.items():
                measured = {"runs": len(runs), "seconds": round(took, 1), "ratio": round(seconds["jobs 1"] / took, 3)}
                rows.append({"block": number, "way": way, **measured, **about})
                print(f"block {number}, {way:9} {took:6.1f} s, ratio {measured['ratio']}", flush=True)
    out = args.out or (None if args.quick else Path("benchmarks/results/jobs.csv"))
    if out:
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
