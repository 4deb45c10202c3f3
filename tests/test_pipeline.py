"""The pipeline as a user runs it: real DVC, real papermill, on a small copy of the project."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import papermill
import pytest
import yaml
from PIL import Image

from pat.params import ROOT

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
NOTEBOOKS = [*(ROOT / "nbs/experiments").glob("*.ipynb"), *(ROOT / "nbs/paper").glob("*.ipynb")]


def commands(stage):
    "The shell commands of a stage of dvc.yaml."
    cmd = stage.get("do", stage)["cmd"]
    return [cmd] if isinstance(cmd, str) else cmd


def run(project, *command, timeout=400, **env):
    "Run a command in `project` with its own copy of the package. Returns the exit status and all that it printed."
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(project), "PATH": path, "OMP_NUM_THREADS": "2", **env}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout + done.stderr


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A copy of the project with 30 scenes, two losses, one epoch, and the results of `dvc repro table1`."
    root = tmp_path_factory.mktemp("project")
    for name in ("pat", "nbs", "dvc.yaml", ".dvcignore", ".gitignore", "params.yaml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    assert run(root, "dvc", "init", "-q")[0] == 0
    for kind in ("images", "labels"):
        (root / "data/streets" / kind).mkdir(parents=True)
        for i in range(30):
            shutil.copy(ROOT / f"data/streets/{kind}/{i:04d}.png", root / f"data/streets/{kind}")
    shutil.copy(ROOT / "data/streets/dataset.yaml", root / "data/streets")
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["train"] |= {"epochs": 1, "batch_size": 8}
    params["models"]["segnet"]["width"] = 4
    params["tables"] = {"table1": {"models": ["segnet"], "losses": ["ce", "pat-written"]}}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    for command in ((sys.executable, "-m", "pat.params", "params.yaml"), ("dvc", "repro", "table1")):
        status, output = run(root, *command)
        assert status == 0, output
    return root


def test_every_parameter_that_the_pipeline_passes_is_one_of_the_notebook():
    # papermill only warns about others, and without the tag `parameters` it knows none
    passed = 0
    for stage in PIPELINE.values():
        for command in commands(stage):
            if command.startswith("papermill"):
                notebook = re.search(r"nbs/\S+\.ipynb", command)[0]
                known = papermill.inspect_notebook(str(ROOT / notebook))
                names = re.findall(r"-[rp] (\w+)", command)
                assert names and set(names) == set(known), notebook
                passed += 1
    assert passed >= 17


def test_all_profiles_share_one_pipeline_and_their_params_are_sound():
    from pat.training import check_params

    profiles = sorted((ROOT / "profiles").iterdir())
    assert profiles
    for profile in profiles:
        assert (profile / "dvc.yaml").resolve() == ROOT / "dvc.yaml"
        params = check_params(f"profiles/{profile.name}/params.yaml")
        assert (params["profile"], params["root"]) == (profile.name, "../..")


@pytest.mark.slow
def test_one_table_alone_makes_what_it_needs(project):
    results = project / "results/sample"
    for name in (*(f"tables/table1.{ending}" for ending in ("md", "tex", "csv")), "datasets/streets.json"):
        assert (results / name).stat().st_size > 0, name
    assert not (results / "figures").exists() and not (results / "report.html").exists()
    result = json.loads((results / "runs/streets-segnet-pat-written.json").read_text())
    assert result["smoke"] is False and result["settings"]["loss_options"]["beta"] == "inverse"
    assert 0 < result["test"]["miou"] < 1
    assert "pat-written" in (results / "tables/table1.md").read_text()
    assert not [*results.rglob("*.tmp*")] and not [*(project / "cache").rglob("*.tmp*")]


@pytest.mark.slow
def test_metrics_and_plots_of_the_runs(project):
    status, output = run(project, "dvc", "metrics", "show", "--json")
    assert status == 0, output
    scores = json.loads(output)[""]["data"]
    assert scores["results/sample/scores/streets-segnet-ce.json"]["data"]["miou"] > 0
    status, output = run(project, "dvc", "plots", "show", "--out", "plots")
    assert status == 0 and "plots/index.html" in output
    page = (project / "plots/index.html").read_text()
    assert "val_miou" in page and "streets-segnet-pat-written" in page


@pytest.mark.slow
def test_nothing_changed_nothing_runs_and_an_edited_loss_trains_its_own_run(project):
    assert "Running stage" not in run(project, "dvc", "repro", "table1")[1]
    before = json.loads((project / "results/sample/runs/streets-segnet-pat-written.json").read_text())
    edit(project / "params.yaml", "alpha: 1", "alpha: 0.7")
    status, output = run(project, "dvc", "repro", "train")
    assert status == 0, output
    ran = re.findall(r"Running stage '([^']+)'", output)
    assert ran == ["check", "choose", "train@streets-segnet-pat-written"]
    after = json.loads((project / "results/sample/runs/streets-segnet-pat-written.json").read_text())
    assert after["settings"]["loss_options"]["alpha"] == 0.7 and after["test"] != before["test"]


@pytest.mark.slow
def test_a_rerun_writes_the_same_bytes(project):
    files = [project / f"results/sample/runs/streets-segnet-ce.{ending}" for ending in ("json", "csv", "npz")]
    before = [file.read_bytes() for file in files]
    status, output = run(project, "dvc", "repro", "--force", "--single-item", "train@streets-segnet-ce")
    assert status == 0, output
    assert [file.read_bytes() for file in files] == before


@pytest.mark.slow
def test_prose_runs_no_stage_and_an_edited_operator_trains_its_own_runs(project):
    ran = lambda: re.findall(r"Running stage '([^']+)'", run(project, "dvc", "repro", "table1")[1])
    ran()  # what tests before have left to do
    edit(project / "pat/losses.py", "  # -log p_y, any shape", "  # of any shape")
    edit(project / "nbs/experiments/train.ipynb", "# Train one run", "# A run is trained")
    assert ran() == ["check"]
    edit(project / "pat/losses.py", "return phi, torch.rsub(phi, 1, alpha=epsilon)", "return phi, 1 - epsilon * phi")
    assert [stage for stage in ran() if "table" not in stage] == ["check", "train@streets-segnet-pat-written"]


@pytest.mark.slow
def test_side_by_side_the_stages_write_the_same_bytes(project):
    run(project, "dvc", "repro", "table1")  # the table of the runs as tests before have left them
    made = {file: file.read_bytes() for file in sorted((project / "results/sample").glob("[rt]*/[a-z]*"))}
    for file in made:
        file.unlink()
    status, output = run(project, sys.executable, "-m", "pat.jobs", "dvc.yaml", "table1", "--jobs", "2")
    assert status == 0 and output.endswith("4 stages ran\n"), output
    assert len(made) == 18 and {file: file.read_bytes() for file in made} == made
    assert "Running stage" not in run(project, "dvc", "repro", "table1")[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("loss: pat-written", "loss: pat-writen", "Did you mean 'pat-written'?"),
        ("model: segnet", "model: segnt", "Did you mean 'segnet'?"),
        ("dataset: streets", "dataset: street", "Did you mean 'streets'?"),
        ("gamma: 2", "gama: 2", "Did you mean 'gamma'?"),
        ("epochs: 1", "epoch: 1", "Did you mean 'epochs'?"),
        ("seeds:\n- 0\n", "seeds:\n- 0\n- 1\n", "params.yaml` writes them anew"),
    ],
)
def test_a_typo_in_params_yaml_stops_the_pipeline_before_anything_trains(project, old, new, message):
    sound = (project / "params.yaml").read_text()
    try:
        edit(project / "params.yaml", old, new)
        status, output = run(project, "dvc", "repro")
    finally:
        (project / "params.yaml").write_text(sound)
    assert status != 0 and message in output
    assert "Running stage 'train" not in output


@pytest.mark.slow
def test_a_parameter_that_did_not_arrive_is_an_error(project):
    status, output = run(project, "papermill", "nbs/experiments/train.ipynb", "out.ipynb",
                         "-r", "runn", "streets-segnet-ce", "-r", "params_file", "params.yaml")  # fmt: skip
    assert status != 0 and "papermill parameter run did not arrive" in output


@pytest.mark.slow
def test_a_table_refuses_a_missing_result_and_a_smoke_run(project):
    file = project / "results/sample/runs/streets-segnet-ce.json"
    result = file.read_text()
    command = ("papermill", "nbs/paper/table1.ipynb", "out.ipynb", "-r", "profile", "sample", "-r", "out", "results/x")
    try:
        file.write_text(result.replace('"smoke": false', '"smoke": true'))
        status, output = run(project, *command)
        assert status != 0 and "is from a smoke run of seconds" in output
        file.unlink()
        status, output = run(project, *command)
        assert status != 0 and "run 'streets-segnet-ce' has no result" in output
    finally:
        file.write_text(result)
    assert not (project / "results/x").exists()


@pytest.mark.slow
def test_data_that_were_not_pulled_are_named(project):
    (project / "data").rename(project / "elsewhere")
    try:
        status, output = run(project, "papermill", "nbs/experiments/prepare.ipynb", "out.ipynb",
                             "-r", "dataset", "streets", "-r", "params_file", "params.yaml")  # fmt: skip
    finally:
        (project / "elsewhere").rename(project / "data")
    assert status != 0 and "data/streets does not exist" in output and "dvc pull data.dvc" in output


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(project):
    edit(project / "params.yaml", "epochs: 1", "epochs: 6")
    name, checkpoint = "streets-segnet-ce", project / "checkpoints/sample/streets-segnet-ce/last.ckpt"
    command = [sys.executable, "-m", "papermill", "nbs/experiments/train.ipynb", "out.ipynb",
               "-r", "run", name, "-r", "params_file", "params.yaml"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(command, cwd=project, env=environment, start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.time() + 60
    while not checkpoint.exists() and time.time() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    status, output = run(project, "dvc", "repro", f"train@{name}")
    assert status == 0, output
    resumed = (project / f"results/sample/runs/{name}.csv").read_bytes()
    assert len(resumed.splitlines()) == 1 + 6 and not checkpoint.exists()
    status, output = run(project, "dvc", "repro", "--force", "--single-item", f"train@{name}")
    assert status == 0, output
    assert (project / f"results/sample/runs/{name}.csv").read_bytes() == resumed


def camvid(root, images=3):
    "A folder in the SegNet authors' layout."
    for split in ("train", "val", "test"):
        lines = []
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for i in range(images):
            Image.fromarray(np.full((12, 16, 3), i, np.uint8)).save(root / split / f"{split}{i}.png")
            Image.fromarray(np.full((12, 16), i, np.uint8)).save(root / f"{split}annot" / f"{split}{i}.png")
            lines.append(f"/SegNet/CamVid/{split}/{split}{i}.png /SegNet/CamVid/{split}annot/{split}{i}.png")
        (root / f"{split}.txt").write_text("\n".join(lines))
    return root


@pytest.mark.slow
def test_fetch_copies_checks_and_pins(project, tmp_path):
    source = camvid(tmp_path / "CamVid")
    status, output = run(project, sys.executable, "-m", "pat.fetch", "camvid", "--from", str(source))
    assert status == 0 and "9 images in datasets/camvid, pinned in datasets/camvid.dvc" in output
    pin = (project / "datasets/camvid.dvc").read_text()

    shutil.rmtree(project / "datasets/camvid")
    status, output = run(project, sys.executable, "-m", "pat.fetch", "camvid", "--from", str(source))
    assert status == 0 and "the copy that datasets/camvid.dvc pins" in output

    shutil.rmtree(project / "datasets/camvid")
    Image.fromarray(np.full((12, 16), 7, np.uint8)).save(source / "valannot" / "val0.png")
    status, output = run(project, sys.executable, "-m", "pat.fetch", "camvid", "--from", str(source))
    assert status != 0 and "differs from the copy that camvid.dvc pins" in output
    assert (project / "datasets/camvid.dvc").read_text() == pin


@pytest.mark.slow
def test_a_broken_copy_leaves_nothing_behind(project, tmp_path):
    shutil.rmtree(project / "datasets", ignore_errors=True)
    source = camvid(tmp_path / "CamVid")
    (source / "testannot" / "test1.png").unlink()
    status, output = run(project, sys.executable, "-m", "pat.fetch", "camvid", "--from", str(source))
    assert status != 0 and "testannot/test1.png does not exist" in output
    assert not [*(project / "datasets").glob("*")]


@pytest.mark.slow
def test_a_list_is_tuned_and_its_runs_are_trained_with_the_best(project):
    ran = lambda output: sorted(re.findall(r"^(\S+): done", output, re.MULTILINE))
    params = yaml.safe_load((project / "params.yaml").read_text())

    def repro(alphas):
        "What ran with these candidates, and what was chosen."
        params["losses"]["pat-written"]["alpha"] = alphas
        params["tune"] = {"dataset": "streets", "model": "segnet", "epochs": 1, "trials": 3, "seeds": [0]}
        (project / "params.yaml").write_text(yaml.safe_dump(params))
        assert run(project, sys.executable, "-m", "pat.params", "params.yaml")[0] == 0
        status, output = run(project, sys.executable, "-m", "pat.jobs", "dvc.yaml", "table1")
        assert status == 0, output
        return ran(output), json.loads((project / "results/sample/chosen/pat-written.json").read_text())["alpha"]

    stages, chosen = repro([0, 1])
    trials = [json.loads(file.read_text()) for file in sorted((project / "results/sample/trials").glob("*.json"))]
    assert [trial["settings"]["loss_options"]["alpha"] for trial in trials] == [0, 1]
    assert chosen == int(trials[1]["best_epoch"]["val_miou"] > trials[0]["best_epoch"]["val_miou"])
    assert {"choose", "tune@tune-pat-written-alpha0", "tune@tune-pat-written-alpha1"} <= {*stages}
    result = json.loads((project / "results/sample/runs/streets-segnet-pat-written.json").read_text())
    assert result["settings"]["loss_options"]["alpha"] == chosen and "test" not in trials[0]

    # one more candidate: one more trial, and no training unless it is the best
    stages, again = repro([0, 0.5, 1])
    tuned = [stage for stage in stages if stage.startswith("tune@")]
    assert tuned == ["tune@tune-pat-written-alpha0_5"]
    assert ("train@streets-segnet-pat-written" in stages) == (again != chosen)
    assert "tune-pat-written-alpha0_5" in (project / "dvc.lock").read_text()
