"Whatever passes the check of a params.yaml trains and draws: what is refused, and what is drawn of the rest."

import copy
import re
import shutil

import pytest
import yaml

from pat.params import ROOT, grid_runs
from pat.training import check_params, main

MINE = {
    "profile": "mine",
    "root": "../..",
    "params_file": "profiles/mine/params.yaml",
    "datasets": {"d": {"format": "folder", "path": "datasets/d", "height": 8, "width": 8, "split": "paper"}},
    "models": {"net": {"name": "segnet", "width": 4, "depths": [1]}},
    "train": {"epochs": 1, "batch_size": 4},
    "losses": {"ce": {"name": "ce"}, "soft": {"name": "pat", "beta": "exponential"}},
    "tables": {"table1": {"models": ["net"], "losses": ["ce", "soft"]}},
    "seeds": [0],
}


@pytest.fixture
def write(tmp_path):
    "Writes a profile with some sections replaced into a small project; returns its params.yaml."
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)

    def write(**sections):
        params = copy.deepcopy(MINE) | sections
        runs = {} if "runs" in sections else {"runs": grid_runs(params)}
        file = tmp_path / "profiles/mine/params.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(params | runs, sort_keys=False))
        if not (file.parent / "dvc.yaml").exists():
            (file.parent / "dvc.yaml").symlink_to("../../dvc.yaml")
        return file

    return write


def dataset(**options):
    return {"d": MINE["datasets"]["d"] | options}


def refused(file, message):
    with pytest.raises((ValueError, OSError), match=message):
        check_params(file)
    with pytest.raises(SystemExit, match=rf"^error: .*{message}"):
        main([str(file)])


# --- what is refused


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "is None, expected a folder from the project's root, such as datasets/mine"),
        (3, "is 3, expected a folder"),
        (True, "is True, expected a folder"),
        ("", "is '', expected a folder"),
        (" data", "is ' data', expected a folder"),
        ("a\nb", "expected a folder"),
        (["data"], r"is \['data'\], expected a folder"),
        ({"a": 1}, "is {'a': 1}, expected a folder"),
        ("~/data", "is '~/data', and nobody expands that"),
        ("~me/data", "nobody expands that"),
        ("$HOME/data", "nobody expands that"),
        ("${HOME}/data", "nobody expands that"),
        ("data/${item}", "nobody expands that"),
        ("https://example.org/a.zip", "nobody expands that"),
        ("C:\\data\\mine", "write it with forward slashes, 'C:/data/mine'"),
        ("datasets\\mine", "write it with forward slashes, 'datasets/mine'"),
        (".", "which holds the project itself"),
        ("..", "which holds the project itself"),
        ("../..", "which holds the project itself"),
        ("/", "which holds the project itself"),
        ("data/..", "which holds the project itself"),
        ("cache", "inside of cache, which is written to"),
        ("cache/mine/d", "inside of cache"),
        ("./results/mine", "inside of results"),
        ("data/../checkpoints/x", "inside of checkpoints"),
    ],
)
def test_a_path_that_cannot_be(write, path, message):
    refused(write(datasets=dataset(path=path)), rf"path of dataset 'd' in .*params\.yaml .*{message}")


def test_a_path_by_way_of_a_link_is_seen_through(write, tmp_path):
    (tmp_path / "mine").symlink_to(tmp_path)
    refused(write(datasets=dataset(path="mine")), "which holds the project itself")
    refused(write(datasets=dataset(path=str(tmp_path))), "which holds the project itself")


@pytest.mark.parametrize("path", ["datasets/d", "../elsewhere", "/data/my photos", "datasets/größe", "C:/d"])
def test_a_path_that_may_be(write, path):
    assert check_params(write(datasets=dataset(path=path)))["datasets"]["d"]["path"] == path


def test_resize_is_an_option(write):
    for resize in ("squeeze", "pad", "crop"):
        check_params(write(datasets=dataset(resize=resize)))
    refused(write(datasets=dataset(resize="padd")), r"unknown resize of dataset 'd' .*'padd'\. Did you mean 'pad'\?")


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("train", None, r"params\.yaml: the section train is None, expected entries"),
        ("train", [1], "the section train is .*expected entries"),
        ("train", {"epochs": 1, "batch_size": 4, "lr": True}, "train.lr is True, expected a number above 0"),
        ("train", {"epochs": 1, "batch_size": 4, "lr": "1e-3"}, "train.lr is '1e-3', expected a number above 0"),
        ("train", {"epochs": 1, "batch_size": 4, "channels_last": "yes"}, "unknown value of train.channels_last 'yes'"),
        ("train", {"epochs": 1, "batch_size": 4, "accelerator": "gpuu"}, "accelerator 'gpuu'. Did you mean 'gpu'"),
        ("tables", {}, r"tables of .* has no table1.*write `table1: {models: \[net\], losses: \[ce\]}`"),
        ("tables", {"table2": MINE["tables"]["table1"]}, "has no table1, which says what to train and to draw"),
        ("tables", MINE["tables"] | {"tabel2": MINE["tables"]["table1"]}, "'tabel2'. Did you mean 'table2'"),
        ("losses", {"ce": {"name": "ce"}, "soft": {"name": "pat", "ignore_index": 0}}, "ignore_index, which com"),
    ],
)
def test_sections_that_cannot_be(write, section, value, message):
    refused(write(**{section: value}), message)


@pytest.mark.parametrize("key", ["models", "losses"])
def test_table1_needs_a_model_and_a_loss(write, key):
    refused(write(runs={}, tables={"table1": MINE["tables"]["table1"] | {key: []}}), f"{key} of table 'table1' in .*")


@pytest.mark.parametrize("section", ["datasets", "models", "losses"])
def test_a_section_without_entries(write, section):
    refused(write(**{section: {}, "runs": {}, "tables": {}}), f"{section} of .* has no entry")


def test_a_copied_profile_is_refused(write):
    refused(write(profile="other"), "elsewhere .profile is 'other'.: change the lines to `profile: mine`")


def test_a_profile_needs_the_pipeline_beside_it(write, tmp_path):
    file = write()
    pipeline = file.with_name("dvc.yaml")
    check_params(file)
    pipeline.unlink()
    copy_it = re.escape(f"copy {tmp_path}/dvc.yaml there")
    refused(file, f"profiles/mine/dvc.yaml does not exist.*{copy_it}")
    pipeline.write_text("../../dvc.yaml")
    refused(file, f"is the text of a link, as Git for Windows leaves it: {copy_it}")
    pipeline.write_bytes((tmp_path / "dvc.yaml").read_bytes().replace(b"\n", b"\r\n"))
    check_params(file)
    pipeline.write_text("stages: {}\n")
    refused(file, f"is not the pipeline of the project any more: {copy_it}")
    (tmp_path / "dvc.yaml").unlink()
    refused(file, "dvc.yaml does not exist: it is the pipeline of all profiles")


def test_the_check_takes_the_file_of_the_working_directory(write, monkeypatch, capsys):
    monkeypatch.chdir(write().parent)
    main(["params.yaml"])
    assert capsys.readouterr().out == "profiles/mine/params.yaml: 2 runs, all names and options exist\n"
