"""The paper profile from raw files to report: its datasets in miniature, its networks at width 2, for one epoch."""

import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import yaml
from dvc.repo import Repo
from miniatures import make_cityscapes, make_nyuv2, make_oxford_pet
from test_pipeline import run

from pat.datasets import load_prepared
from pat.params import ROOT, load_params, run_settings
from pat.tables import paper_values
from pat.training import train, write_outcome

pytestmark = pytest.mark.slow

FOLDER = "profiles/paper"
PARAMS = load_params(f"{FOLDER}/params.yaml")
TABLES = {1: "table1", 2: "table2", 3: "table3"}
CITIES = (("train", ("aachen", "bremen"), 14), ("val", ("lindau",), 12), ("test", ("berlin",), 2))


def shrink(file):
    "Make a params.yaml one for seconds; tables, losses, formats and paths stay as they are."
    params = yaml.safe_load(file.read_text())
    for options in params["datasets"].values():
        options |= {"height": options["height"] // 8, "width": options["width"] // 8}
    for options in params["models"].values():
        options["width"] = 2
    params["train"] |= {"epochs": 1, "batch_size": 16, "threads": 1, "workers": 0}
    params["seeds"] = [0]
    file.write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A copy of the project whose paper profile has run."
    root = tmp_path_factory.mktemp("paper")
    for name in ("pat", "nbs", FOLDER, "dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name, **{"symlinks": True} if (ROOT / name).is_dir() else {})
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    make_oxford_pet(root / "datasets/oxford_pet", trainval=30, test=10)
    make_cityscapes(root / "datasets/cityscapes", CITIES)
    make_nyuv2(root / "datasets/nyuv2", train=30, test=10)
    shrink(root / FOLDER / "params.yaml")
    pipeline = f"{FOLDER}/dvc.yaml"
    steps = [
        ("dvc", "init", "-q"),
        (sys.executable, "-m", "pat.params", f"{FOLDER}/params.yaml"),
        (sys.executable, "-m", "pat.jobs", pipeline),
    ]
    for step in steps:
        status, output = run(root, *step, timeout=1800)  # minutes, on a machine that does nothing else
        assert status == 0, output
    return root


# --- what the profile is


def test_every_number_of_the_papers_tables_has_its_runs():
    losses = PARAMS["losses"]
    for number, table in TABLES.items():
        wanted = PARAMS["tables"][table]
        if number == 3:
            order = sorted(wanted["losses"], key=lambda loss: losses[loss]["temperature"])
            methods = [f"pat-T{i}" for i in range(1, len(order) + 1)]
        else:
            methods = [losses[loss]["name"] for loss in wanted["losses"]]
        ours = set(product(PARAMS["datasets"], wanted["models"], methods))
        assert ours == set(paper_values(number)[["dataset", "model", "method"]].itertuples(index=False, name=None))


def test_the_setting_of_tables_1_and_2_is_the_third_temperature():
    losses, tables = PARAMS["losses"], PARAMS["tables"]
    third = sorted(tables["table3"]["losses"], key=lambda loss: losses[loss]["temperature"])[2]
    assert third in tables["table1"]["losses"] and third in tables["table2"]["losses"]
    shown = [losses[loss] for table in ("table1", "table2") for loss in tables[table]["losses"]]
    used = [loss for loss in shown if loss["name"] == "pat" and loss["beta"] != "none"]  # beta has the temperature
    assert {loss["temperature"] for loss in used} == {losses[third]["temperature"]}


def test_it_trains_as_the_paper_does_with_its_seed_and_three_more():
    train = PARAMS["train"]
    assert (train["epochs"], train["lr"], train["select"], train["precision"]) == (100, 0.001, "val_ce", "32-true")
    assert PARAMS["seeds"] == [0, 1, 2, 3] and not any("seeds" in table for table in PARAMS["tables"].values())
    assert {options["width"] for options in PARAMS["models"].values()} == {32}


# --- what it makes


def outputs(root):
    "Every output of every stage of the profile, as DVC knows them."
    stages = Repo(root).stage.collect(str(root / FOLDER / "dvc.yaml"))
    return {stage.addressing: [Path(out.fs_path) for out in stage.outs] for stage in stages}


def test_every_output_of_every_stage_is_there_and_nothing_is_left_to_do(project):
    made = outputs(project)
    assert len(made) >= len(load_params(project / FOLDER / "params.yaml")["runs"]) + 20
    for stage, paths in made.items():
        assert paths, stage
        for path in paths:
            files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
            assert files and all(file.stat().st_size for file in files), f"{path} of {stage}"
    assert not [*project.glob("results/**/*.tmp*")] and not [*project.glob("cache/**/*.tmp*")]
    status, output = run(project, "dvc", "status", "--json", f"{FOLDER}/dvc.yaml")
    assert (status, output.strip()) == (0, "{}")


def test_a_run_in_this_process_is_the_run_of_the_pipeline(project, tmp_path):
    settings = run_settings(load_params(project / FOLDER / "params.yaml"), "nyuv2-segnet-ce")
    write_outcome(train(settings, load_prepared(project / "cache/paper/nyuv2"), tmp_path, progress=False), tmp_path)
    for file in ("runs/nyuv2-segnet-ce.json", "runs/nyuv2-segnet-ce.csv", "runs/nyuv2-segnet-ce.npz"):
        assert (tmp_path / file).read_bytes() == (project / "results/paper" / file).read_bytes()


def test_void_is_a_class_where_the_paper_scores_it(project):
    names = {}
    for dataset in PARAMS["datasets"]:
        names[dataset] = json.loads((project / f"results/paper/datasets/{dataset}.json").read_text())["names"]
    assert {dataset: len(classes) for dataset, classes in names.items()} == {
        "oxford-pet": 3, "cityscapes": 20, "nyuv2": 14,
    }  # fmt: skip
    assert names["cityscapes"][-1] == names["nyuv2"][-1] == "void"


@pytest.mark.parametrize(("number", "table"), TABLES.items())
def test_a_table_has_every_row_and_every_number_of_the_paper(project, number, table):
    values = pd.read_csv(project / f"results/paper/tables/{table}.csv")
    wanted = PARAMS["tables"][table]
    rows = values[["dataset", "model", "loss"]].drop_duplicates()
    assert len(rows) == len(PARAMS["datasets"]) * len(wanted["models"]) * len(wanted["losses"])
    assert (set(rows["dataset"]), set(rows["model"])) == (set(PARAMS["datasets"]), set(wanted["models"]))
    keys = ["dataset", "model", "method", "value"]
    shown = values.dropna(subset="paper").drop(columns="value").rename(columns={"paper": "value"})[keys]
    theirs = paper_values(number).dropna(subset="value")[keys]
    assert set(shown.itertuples(index=False)) == set(theirs.itertuples(index=False))


def test_the_report_shows_every_table_and_figure(project):
    page = (project / "results/paper/report.html").read_text()
    figures = [file.stem for file in (project / "results/paper/figures").glob("*.png")]
    assert {f"figure{i}" for i in range(1, 7)} <= set(figures)
    assert page.count("data:image/png;base64") >= len(figures)
    for name in (*PARAMS["datasets"], *PARAMS["models"], *PARAMS["losses"], *(f"Table {i}" for i in TABLES)):
        assert name in page, name
