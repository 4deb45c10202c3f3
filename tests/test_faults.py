"A training that is killed, stopped or out of room, and goes on: the same bytes as unbroken."

import multiprocessing
import os
import random
import re
import resource
import signal
import time

import pytest
import torch
from test_training import make_settings, tiny

from pat.training import save_checkpoint, train, write_outcome

# Not a copy of this process: torch refuses autograd in one whose parent has had threads for it, as other tests may.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pat.training"])  # imported once, not by every process
SETTINGS = make_settings(epochs=6, augment={"flip": 0.5, "rotate": 10}, threads=1)


def run(folder, settings=SETTINGS):
    "Train and write the results."
    torch.set_num_threads(1)
    write_outcome(train(settings, tiny(), folder / "checkpoints", progress=False), folder / "results")


def start(*args, target=run):
    "`target` in a process of its own."
    process = PROCESSES.Process(target=target, args=args)
    process.start()
    return process


def files(folder):
    "What a run leaves, but for what it took."
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in found if "costs" not in file.parts}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    start(target=int).join()  # the first waits for the imports
    begun = time.time()
    process = start(folder)
    process.join()
    assert process.exitcode == 0
    return files(folder / "results"), time.time() - begun


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_random_points_it_ends_as_if_it_had_not_been(unbroken, tmp_path, number):
    expected, seconds = unbroken
    rng, kills, left = random.Random(number), 0, 30 if number == signal.SIGKILL else 8
    epochs = set()
    while True:
        process = start(tmp_path)
        process.join(rng.uniform(0.1, seconds) if kills < left else None)
        if process.exitcode is not None:
            if process.exitcode == 0 and kills >= left:
                break
            assert process.exitcode == 0
            for file in (tmp_path / "results").rglob("*"):  # it had ended before: once more
                if file.is_file():
                    file.unlink()
            continue
        os.kill(process.pid, number)
        process.join()
        kills += 1
        epochs.add((tmp_path / "checkpoints/progress.json").exists())
    assert files(tmp_path / "results") == expected and True in epochs


def limited(folder, size):
    "`run` where no file can be larger than `size` bytes, as on a full disk."
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        run(folder)
    except OSError as error:
        (folder / "error").write_text(f"{error}"[:1000])


@pytest.mark.parametrize("size", [1000, 10_000, 200_000])
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(unbroken, tmp_path, size):
    start(tmp_path, size, target=limited).join()
    told = (tmp_path / "error").read_text()
    assert re.search(r"File too large: '.*/last\.ckpt'|last\.ckpt cannot .* disk full", told)
    assert not [*tmp_path.rglob("*.tmp*")]
    run(tmp_path)
    assert files(tmp_path / "results") == unbroken[0]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    from lightning_fabric import Fabric

    class Full:
        is_global_zero = True

        def save(self, path, state):
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    save_checkpoint(Fabric(accelerator="cpu"), tmp_path / "last.ckpt", {"epoch": 1})
    with pytest.raises(OSError, match=r"last\.ckpt cannot be written \(.*\)\. Is the disk full\? Then make room, and"):
        save_checkpoint(Full(), tmp_path / "last.ckpt", {"epoch": 2})
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"epoch": 1}
