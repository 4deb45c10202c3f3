"""`prepare` at size and under stress: memory, threads, kills, and a source or settings that changed in between."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from miniatures import draw, make_camvid, make_cityscapes, make_folder, make_nyuv2, make_oxford_pet

from pat import datasets
from pat.datasets import load_prepared, open_source, prepare

MAKERS = {"folder": make_folder, "camvid": make_camvid, "oxford_pet": make_oxford_pet,
          "cityscapes": make_cityscapes, "nyuv2": make_nyuv2}  # fmt: skip


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@contextmanager
def reads(monkeypatch):
    "The positions of the pairs that are decoded meanwhile."
    positions, real = [], datasets.read_resized
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "read_resized", lambda s, i, *size: (positions.append(i), real(s, i, *size))[1])
        yield positions


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "mine")


@pytest.mark.parametrize("format", MAKERS)
def test_threads_change_nothing_in_the_result(format, tmp_path):
    source = open_source(format, MAKERS[format](tmp_path / format))
    for threads in (1, 2, 7):
        prepare(source, tmp_path / f"by-{threads}", 9, 12, threads=threads)
    assert content(tmp_path / "by-1") == content(tmp_path / "by-2") == content(tmp_path / "by-7")


def test_two_pairs_are_read_at_the_same_time(folder, tmp_path, monkeypatch):
    both, real = threading.Barrier(2, timeout=20), datasets.read_resized
    monkeypatch.setattr(datasets, "read_resized", lambda *arguments: (both.wait(), real(*arguments))[1])
    prepare(open_source("folder", folder), tmp_path / "cache", 18, 24, threads=2)


def test_progress_bar(folder, tmp_path, capfd):
    prepare(open_source("folder", folder), tmp_path / "cache", 18, 24)
    assert "prepare: 100%" in capfd.readouterr().err
    prepare(open_source("folder", folder), tmp_path / "cache", 18, 24)
    assert "check: 100%" in capfd.readouterr().err


# --- what is there already


def test_a_cache_that_holds_is_kept(folder, tmp_path, monkeypatch, capsys):
    source = open_source("folder", folder)
    first = prepare(source, tmp_path / "cache", 18, 24)
    before = content(tmp_path / "cache")
    with reads(monkeypatch) as decoded:
        assert prepare(source, tmp_path / "cache", 18, 24) == first
    assert decoded == [] and content(tmp_path / "cache") == before and not capsys.readouterr().out


def test_another_split_needs_no_image(tmp_path, monkeypatch):
    source = open_source("camvid", make_camvid(tmp_path / "CamVid"))
    prepare(source, tmp_path / "cache", 9, 12, split="paper")
    with reads(monkeypatch) as decoded:
        prepare(source, tmp_path / "cache", 9, 12, split="official")
    prepare(source, tmp_path / "fresh", 9, 12, split="official")
    assert decoded == [] and content(tmp_path / "cache") == content(tmp_path / "fresh")


def other_height(source):
    return source, (9, 24)


def other_width(source):
    return source, (18, 12)


def void_scored(source):
    return datasets.void_as_class(source, "mine"), (18, 24)


def fewer_images(source):
    return datasets.replace(source, pairs=source.pairs[:-1]), (18, 24)


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize(
    ("change", "named"),
    [(other_height, "height"), (other_width, "width"), (void_scored, "ids"), (fewer_images, "images")],
)
def test_other_settings_prepare_anew_and_say_which(change, named, finish, folder, tmp_path, monkeypatch, capsys):
    "A complete cache, and what a killed attempt left."
    source, cache = open_source("folder", folder), tmp_path / "cache"
    prepare(source, cache, 18, 24)
    if not finish:
        cache = cache.rename(tmp_path / "cache.tmp").with_name("cache")
    source, size = change(source)
    with reads(monkeypatch) as decoded:
        prepare(source, cache, *size)
    assert len(decoded) == len(source.pairs)
    told = cache if finish else tmp_path / "cache.tmp"
    assert capsys.readouterr().out == f"{told} was prepared with another {named}: all images are read again\n"
    prepare(source, tmp_path / "fresh", *size)
    assert content(cache) == content(tmp_path / "fresh")


def test_another_pillow_prepares_anew(folder, tmp_path, monkeypatch, capsys):
    source = open_source("folder", folder)
    prepare(source, tmp_path / "cache", 18, 24)
    monkeypatch.setattr(datasets.PIL, "__version__", "0.0.1")
    prepare(source, tmp_path / "cache", 18, 24)
    assert "was prepared with another pillow" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["images/06.jpg", "labels/06.png"])
def test_a_changed_source_is_read_again_and_named(folder, tmp_path, monkeypatch, capsys, name):
    "Same size and time of the file, other pixels: it is the content that counts."
    source = open_source("folder", folder)
    prepare(source, tmp_path / "cache", 18, 24)
    file = folder / name
    before = file.stat()
    draw(file, 99, "RGB" if "images" in name else (0, 1, 2))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with reads(monkeypatch) as decoded:
        prepare(source, tmp_path / "cache", 18, 24)
    assert sorted(decoded) == list(range(10))
    assert f"labels/06.png or its image has changed, since {tmp_path}/cache was prepared" in capsys.readouterr().out
    prepare(source, tmp_path / "fresh", 18, 24)
    assert content(tmp_path / "cache") == content(tmp_path / "fresh")


def test_a_changed_room_is_read_again_and_named(tmp_path, capsys):
    root = make_nyuv2(tmp_path / "nyuv2")
    prepare(open_source("nyuv2", root), tmp_path / "cache", 9, 12)
    with datasets.h5py.File(root / "nyu_depth_v2_labeled.mat", "r+") as mat:
        mat["images"][4, 0, 0, 0] ^= 255
    prepare(open_source("nyuv2", root), tmp_path / "cache", 9, 12)
    assert "image 5, or its image has changed" in capsys.readouterr().out


def test_after_a_broken_file_is_mended_the_rest_is_done(folder, tmp_path, monkeypatch, capsys):
    source, file = open_source("folder", folder), folder / "labels/06.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    with pytest.raises(ValueError, match=r"labels/06\.png is truncated"):
        prepare(source, tmp_path / "cache", 18, 24, threads=1)
    file.write_bytes(whole)
    with reads(monkeypatch) as decoded:
        prepare(source, tmp_path / "cache", 18, 24)
    assert sorted(decoded) == [6, 7, 8, 9] and not capsys.readouterr().out
    prepare(source, tmp_path / "fresh", 18, 24)
    assert content(tmp_path / "cache") == content(tmp_path / "fresh")


def test_a_source_that_changed_after_the_kill_is_read_from_there(folder, tmp_path, monkeypatch, capsys):
    source, file = open_source("folder", folder), folder / "labels/06.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    with pytest.raises(ValueError, match=r"labels/06\.png is truncated"):
        prepare(source, tmp_path / "cache", 18, 24)
    file.write_bytes(whole)
    draw(folder / "images/02.jpg", 77, "RGB")
    with reads(monkeypatch) as decoded:
        prepare(source, tmp_path / "cache", 18, 24)
    assert sorted(decoded) == list(range(2, 10))
    assert "labels/02.png or its image has changed, since" in capsys.readouterr().out
    prepare(source, tmp_path / "fresh", 18, 24)
    assert content(tmp_path / "cache") == content(tmp_path / "fresh")


def test_each_image_is_in_the_journal_before_the_next_is_read(folder, tmp_path, monkeypatch):
    journal, real = tmp_path / "cache.tmp" / "journal.jsonl", datasets.read_resized

    def read_pair(source, index, *size):
        deadline = time.time() + 10
        while journal.read_text().count("\n") < 1 + index:  # the request, and a line for each image before this one
            assert time.time() < deadline, f"image {index} is read, and the journal lacks one before it"
            time.sleep(0.001)
        return real(source, index, *size)

    monkeypatch.setattr(datasets, "read_resized", read_pair)
    prepare(open_source("folder", folder), tmp_path / "cache", 18, 24, threads=1)


def test_half_a_line_of_the_journal_does_not_count(folder, tmp_path, monkeypatch):
    source, cache = open_source("folder", folder), tmp_path / "cache"
    prepare(source, cache, 18, 24)
    fresh = content(cache)
    left = cache.rename(tmp_path / "cache.tmp")
    lines = fresh["journal.jsonl"].splitlines(keepends=True)
    (left / "journal.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:40])
    (left / "images.npy").write_bytes(fresh["images.npy"][: -4 * 18 * 24 * 3] + bytes(4 * 18 * 24 * 3))
    with reads(monkeypatch) as decoded:
        prepare(source, cache, 18, 24)
    assert sorted(decoded) == list(range(4, 10)) and content(cache) == fresh


def test_what_is_no_cache_gives_way(folder, tmp_path):
    left = tmp_path / "cache.tmp"
    left.mkdir()
    (left / "images.npy").write_bytes(b"half")
    prepare(open_source("folder", folder), tmp_path / "cache", 18, 24)
    assert load_prepared(tmp_path / "cache").images.shape == (10, 18, 24, 3) and not left.exists()


def test_two_at_once_share_the_work(folder, tmp_path, monkeypatch):
    "The second waits for the first, and finds it done."
    source = open_source("folder", folder)
    with reads(monkeypatch) as decoded, ThreadPoolExecutor(2) as pool:
        metas = list(pool.map(lambda _: prepare(source, tmp_path / "cache", 18, 24), range(2)))
    assert metas[0] == metas[1] and sorted(decoded) == list(range(10))


# --- processes of their own: kill -9, and the memory that the system counts

SCRIPT = """
import re, resource, sys
from pathlib import Path
from pat.datasets import open_source, prepare
before = resource.getrusage(resource.RUSAGE_CHILDREN)
prepare(open_source("folder", sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
assert resource.getrusage(resource.RUSAGE_CHILDREN) == before  # threads, no processes
print(int(re.search("VmHWM:[^0-9]*([0-9]+) kB", Path("/proc/self/status").read_text())[1]) / 1024)
"""


def command(source, cache, height, width):
    return [sys.executable, "-c", SCRIPT, *map(str, (source, cache, height, width))]


def make_many(root, images, size, different=4):
    "The folder format with `images` images, of which `different` take up space."
    make_folder(root, different, size=size)
    for i in range(different, images):
        for kind in ("images", "labels"):
            like = next((root / kind).glob(f"{i % different:02d}.*"))
            os.link(like, root / kind / f"{i:04d}{like.suffix}")
    return root


@pytest.mark.slow
def test_kill_9_costs_only_what_was_under_way(tmp_path, monkeypatch):
    many, cache, images = make_many(tmp_path / "many", 200, (960, 480)), tmp_path / "cache", 200
    process = subprocess.Popen(command(many, cache, 240, 480), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal, deadline = tmp_path / "cache.tmp" / "journal.jsonl", time.time() + 60
    while time.time() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") > 20):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not cache.exists()
    done = journal.read_bytes().count(b"\n") - 1
    assert 20 <= done < images
    with reads(monkeypatch) as decoded:
        prepare(open_source("folder", many), cache, 240, 480)
    assert sorted(decoded) == list(range(done, images))
    prepare(open_source("folder", many), tmp_path / "fresh", 240, 480)
    assert content(cache) == content(tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_memory_stays_below_a_gibibyte_and_does_not_grow_with_the_images(tmp_path):
    "Images of 2048 x 1024 kept at their size: 32 more rows are 256 MiB more on disk."
    peaks = {}
    for images in (16, 48):
        many = make_many(tmp_path / f"many-{images}", images, (2049, 1023))
        done = subprocess.run(command(many, tmp_path / f"cache-{images}", 1024, 2048), check=True,
                              capture_output=True, text=True)  # fmt: skip
        peaks[images] = float(done.stdout)
        assert (tmp_path / f"cache-{images}/images.npy").stat().st_size > images * 1024 * 2048 * 3
    assert max(peaks.values()) < 1024, peaks
    assert peaks[48] - peaks[16] < 64, peaks
