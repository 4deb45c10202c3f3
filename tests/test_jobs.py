"Stages side by side: real DVC, on pipelines of shell commands."

import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from pat import jobs
from pat.jobs import how_many, main, memory_of_one
from pat.params import ROOT

COLD = "import pat.jobs; pat.jobs.WARM.clear(); pat.jobs.main()"  # no imports that these stages do not need


@pytest.fixture
def project(tmp_path, monkeypatch):
    "Makes a DVC project of stages: name -> command, what it reads, what it writes."

    def make(stages):
        monkeypatch.chdir(tmp_path)
        if not (tmp_path / ".dvc").exists():
            subprocess.run(["git", "init", "-q"], check=True)
            subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
        (tmp_path / "params.yaml").write_text("profile: sample\nparams_file: params.yaml\n")
        (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
        return tmp_path

    return make


def stage(cmd, deps=(), outs=(), **more):
    return {"cmd": cmd, "deps": [*deps], "outs": [{out: {"cache": False}} for out in outs], **more}


def meets(mine, other):
    "A command that ends only if the other stage runs at the same time."
    return f"touch {mine}.here; for i in $(seq 100); do [ -e {other}.here ] && break; sleep 0.1; done; " \
           f"[ -e {other}.here ] && echo {mine} > {mine}"  # fmt: skip


def repro(root, *arguments):
    "Status, output and errors of the command."
    command = [sys.executable, "-c", COLD, "dvc.yaml", "--root", str(root), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def clean(root):
    "Whether DVC finds nothing to do."
    done = subprocess.run([sys.executable, "-m", "dvc", "status"], cwd=root, capture_output=True, text=True)
    return "up to date" in done.stdout


@pytest.mark.slow
def test_stages_that_do_not_need_each_other_run_at_once(project):
    root = project({"a": stage(meets("a", "b"), outs=["a"]), "b": stage(meets("b", "a"), outs=["b"]),
                    "c": stage("cat a b > c", ["a", "b"], ["c"])})  # fmt: skip
    status, said, _ = repro(root, "--jobs", "2")
    assert status == 0 and said.endswith("c: done (3 done, 0 waiting)\n3 stages ran\n")
    assert (root / "c").read_text() == "a\nb\n" and clean(root)
    assert repro(root, "--jobs", "2")[:2] == (0, "Data and pipelines are up to date.\n")


@pytest.mark.slow
def test_only_what_changed_runs_and_targets_can_be_named(project):
    root = project({name: stage(f"cat {name}.in > {name}.out", [f"{name}.in"], [f"{name}.out"]) for name in "ab"})
    for name in "ab":
        (root / f"{name}.in").write_text(name)
    assert repro(root, "a", "--jobs", "1")[0] == 0
    assert (root / "a.out").exists() and not (root / "b.out").exists()
    assert repro(root, "--jobs", "1")[0] == 0
    (root / "a.in").write_text("new")
    assert repro(root, "--jobs", "1")[1].count("done (") == 1
    assert (root / "a.out").read_text() == "new" and clean(root)


def test_a_stage_that_fails_does_not_stop_the_others(project):
    root = project({"bad": stage("echo why >&2; exit 3", outs=["bad"]),
                    "after": stage("touch after", ["bad"], ["after"]),
                    "good": stage("sleep 0.5; echo 1 > good", outs=["good"]),
                    "forgets": stage("true", outs=["forgotten"])})  # fmt: skip
    status, _, said = repro(root, "--jobs", "2")
    assert status == 1 and "\nbad failed:\n> echo why >&2; exit 3\nwhy\n" in said
    assert "'forgotten' does not exist" in said
    assert re.search(r"error: failed: (bad, forgets|forgets, bad)\. The logs are in .*results/sample/notebooks", said)
    assert (root / "good").exists() and not (root / "after").exists()
    assert (root / "results/sample/notebooks/bad.log").read_text().endswith("why\n")


def test_a_cell_that_raises_is_shown(project):
    root = project({"a": stage("papermill a.ipynb b.ipynb", ["a.ipynb"], ["b.ipynb"])})
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")], metadata=metadata), root / "a.ipynb")
    status, _, said = repro(root, "--jobs", "1")
    assert status == 1 and "ZeroDivisionError: division by zero" in said and "object repr" not in said


@pytest.mark.slow
def test_what_was_edited_while_it_was_read_is_not_recorded(project):
    root = project({"a": stage("cat a.in > a.out; echo new > a.in", ["a.in"], ["a.out"])})
    (root / "a.in").write_text("old\n")
    status, _, said = repro(root, "--jobs", "1")
    assert status == 1 and "a.in changed while it ran: run it again" in said and not clean(root)


@pytest.mark.slow
def test_a_stage_that_measures_time_runs_alone(project):
    watch = "touch {0}.here; sleep 0.5; ls *.here > {0}; rm {0}.here"
    root = project({"a": stage(watch.format("a"), outs=["a"]), "b": stage(watch.format("b"), outs=["b"]),
                    "m": stage(watch.format("m"), outs=["m"], meta={"alone": True})})  # fmt: skip
    assert repro(root, "--jobs", "3")[0] == 0
    assert (root / "m").read_text() == "m.here\n"


def test_numbers_of_jobs_that_cannot_be(project, tmp_path):
    root = project({})
    with pytest.raises(SystemExit, match="error: JOBS is 0, expected a whole number of at least 1"):
        main(["dvc.yaml", "--root", str(root), "--jobs", "0"])
    with pytest.raises(ValueError, match=r"2 jobs of about 1048576\.0 GiB do not fit .*: at most JOBS=1$"):
        how_many(2, 2**50)
    assert how_many(None, 2**50) == 1
    (tmp_path / "a.json").write_text('{"peak_memory_mib": 2048}')
    (tmp_path / "b.json").write_text('{"peak_memory_mib": null}')
    assert memory_of_one(tmp_path) == 2**31 and memory_of_one(tmp_path / "none") == 2**30


def test_jobs_are_as_many_as_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert jobs.gpus() == ["3", "5"] and how_many(None, 1) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,4,6")  # for runs of two GPUs: one is left over
    assert jobs.gpus(2) == ["0,1", "2,4"] and how_many(None, 1, 2) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(jobs, "cores", lambda: 7)
    assert jobs.gpus() == [] and how_many(None, 1) == 7 and how_many(None, 1, 2) == 3 and how_many(None, 1, 8) == 1


def ends(condition, seconds=20):
    deadline = time.time() + seconds
    while not condition() and time.time() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_runs_ends_with_the_command(project, number):
    root = project({"a": stage("sleep 1000 & echo $! > pid; wait", outs=["a"])})
    command = [sys.executable, "-c", COLD, "dvc.yaml", "--root", str(root), "--jobs", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are deaf to it
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "preexec_fn": heard}
    process = subprocess.Popen(command, cwd=root, env=environment, **options)
    assert ends(lambda: (root / "pid").exists() and (root / "pid").read_text().endswith("\n"))
    sleeper = int((root / "pid").read_text())
    status, _, said = repro(root, "--jobs", "1")
    assert status == 1 and "Unable to acquire lock" in said
    process.send_signal(number)
    assert process.wait(20) == (130 if number != signal.SIGKILL else -9)
    assert ends(lambda: not psutil.pid_exists(sleeper) or psutil.Process(sleeper).status() == psutil.STATUS_ZOMBIE)
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"a": stage("touch a", outs=["a"])}}))
    assert repro(root, "--jobs", "1")[0] == 0 and clean(root)


@pytest.mark.slow
def test_a_journal_that_a_kill_has_left_is_recorded(project, tmp_path):
    root = project({name: stage(f"echo {name} > {name}", outs=[name]) for name in "ab"})
    assert repro(root, "--jobs", "1")[0] == 0
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    entry = json.dumps({"b": lock["stages"].pop("b")})
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))
    (root / ".dvc/tmp/sample.jsonl").write_text(f'{entry}\n{{"a": {{"half')
    assert repro(root, "--jobs", "1")[:2] == (0, "Data and pipelines are up to date.\n") and clean(root)
    assert not (root / ".dvc/tmp/sample.jsonl").exists()


@pytest.mark.slow
def test_what_a_stage_says_is_told_where_the_pipeline_wants_it(project):
    root = project({"a": stage("echo loud [yes]; echo 1 > a", outs=["a"], meta={"tell": True}),
                    "b": stage("echo silent; echo 1 > b", outs=["b"])})  # fmt: skip
    _, said, _ = repro(root, "--jobs", "1")
    assert "\nloud [yes]\n" in said and "silent" not in said


@pytest.mark.parametrize(("idle", "together"), [(2.0, True), (0.0, False)])
def test_a_busy_machine_gets_one_at_a_time_unless_somebody_says_how_many(idle, together):
    stages = [type(name, (), {"meta": None}) for name in "ab"]
    for polite in (True, False):
        grid = jobs.Grid(None, None, None, {stages[1]: set()}, jobs=2, polite=polite, idle=idle)
        assert jobs.may_start(grid, stages[1])  # the first always
        grid.running.append(jobs.Job(stages[0], None, None, 0))
        assert jobs.may_start(grid, stages[1]) == (together or not polite)
