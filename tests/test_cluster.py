"Stages on a Ray cluster of several nodes in this machine: nodes and heads that are lost, other code, tasks that fail."

import os
import socket
import subprocess
import sys
import time

import pytest
import yaml
from test_jobs import clean, ends, project, stage  # noqa: F401 (a fixture)

from pat import cluster
from pat.cluster import Place, Task, check_code, kept, knock, pack, task_of, written
from pat.params import ROOT

START = "import pat.jobs; {} pat.jobs.main()"
ALONE = "import pat.cluster; pat.cluster.write_file = lambda *_: None;"  # no token: no node sees the folder


@pytest.fixture
def nodes(monkeypatch, tmp_path):
    "Starts clusters of nodes with one core each, all at one address."
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PAT_NODE_FOLDER", str(tmp_path / "node"))
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_timeout_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []

    def start(count):
        head = {"num_cpus": 0, "gcs_server_port": port, "object_store_memory": 10**8, "include_dashboard": False}
        started.append(Cluster(initialize_head=True, head_node_args=head))
        return started[-1], [started[-1].add_node(num_cpus=1, object_store_memory=10**8) for _ in range(count)]

    yield start
    for each in started:
        each.shutdown()


def begun(root, address, alone=False):
    "The command, as it runs."
    command = [sys.executable, "-c", START.format(ALONE if alone else ""), "dvc.yaml", "--root", str(root)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, "--address", address, "--jobs", "1"], cwd=root, env=environment, **pipes)


def slow(name, runs, seconds=3):
    "A stage that says how often it has begun and ended."
    begin, end = (f"echo {name} >> {runs}.{what}" for what in ("begun", "ended"))
    command = f"{begin}; sleep {seconds}; cat in/{name} > out-{name}; {end}"
    return stage(command, ["in"], [f"out-{name}"], meta={"cluster": True})


def grid_of(project, names, tmp_path, **more):  # noqa: F811
    runs = tmp_path / "runs"
    outs = [f"out-{name}" for name in names]
    last = stage("cat " + " ".join(outs) + " > table", outs, ["table"])
    root = project({name: slow(name, runs) for name in names} | {"table": last} | more)
    (root / "in").mkdir()
    for name in names:
        (root / "in" / name).write_text(name)

    def told(what):
        file = tmp_path / f"runs.{what}"
        return file.read_text().split() if file.exists() else []

    return root, told


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True], ids=["shared folder", "no shared folder"])
def test_nodes_come_and_go_in_mid_grid(project, nodes, tmp_path, alone):  # noqa: F811
    root, told = grid_of(project, "abcde", tmp_path, bad=stage("echo why >&2; exit 3", meta={"cluster": True}))
    ring, (first, second) = nodes(2)
    command = begun(root, ring.address, alone)
    if not ends(lambda: len(told("ended")) >= 1 and len(told("begun")) > len(told("ended")), 150):
        command.terminate()
        pytest.fail(f"no task has ended while another ran: {command.communicate(timeout=60)[0]}")
    ring.remove_node(second, allow_graceful=False)
    ring.add_node(num_cpus=1, object_store_memory=10**8)
    ring.remove_node(first, allow_graceful=False)  # what is left has to run on the new one
    said, _ = command.communicate(timeout=120)
    assert command.returncode == 1 and "error: failed: bad." in said and "why" in said  # the others finished
    assert (root / "table").read_text() == "abcde"
    lock = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    assert sorted(lock) == ["a", "b", "c", "d", "e", "table"]
    assert 5 <= len(told("ended")) <= 7  # what had ended was not begun again, unless its node took it along
    assert (tmp_path / "node" / "store").exists() == alone
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {k: v for k, v in yaml.safe_load(
        (root / "dvc.yaml").read_text())["stages"].items() if k != "bad"}}))  # fmt: skip
    assert clean(root)


@pytest.mark.slow
def test_the_head_is_started_again(project, nodes, tmp_path):  # noqa: F811
    root, told = grid_of(project, "abc", tmp_path)
    ring, _ = nodes(1)
    command = begun(root, ring.address)
    assert ends(lambda: "a" in (root / "dvc.lock").read_text() if (root / "dvc.lock").exists() else False, 90)
    ring.shutdown()
    nodes(1)
    said, _ = command.communicate(timeout=180)
    assert command.returncode == 0, said
    assert "the connection to Ray is lost" in said
    assert (root / "table").read_text() == "abc" and clean(root)
    assert len([name for name in told("ended") if name == "a"]) == 1  # what was recorded is not run again


def test_what_ends_the_connection_again_and_again_ends_the_command(tmp_path, monkeypatch):
    one = cluster.Line(None, None)
    closed = []
    monkeypatch.setattr(cluster.Line, "close", lambda line: closed.append(line))
    monkeypatch.setattr(cluster, "first_line", lambda place: one)
    monkeypatch.setattr(cluster, "open_line", lambda place: one)
    made = cluster.Cluster(Place(tmp_path, None, 1, 1), "params.yaml")
    for _ in range(5):
        cluster.again(made)
    with pytest.raises(ValueError, match="was lost six times, and no stage has ended"):
        cluster.again(made)
    assert len(closed) == 5


def test_a_full_disk_here_fails_the_stage_and_not_the_connection(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.ray, "get", lambda future: (0, "done", {"results/a": b"1", "results/b": b"2"}))
    assert cluster.finish("future", tmp_path) == (0, "done") and (tmp_path / "results/b").read_bytes() == b"2"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cluster.Path, "write_bytes", full)
    status, said = cluster.finish("future", tmp_path)
    assert status == 1 and "No space left on device" in said and (tmp_path / "results/a").read_bytes() == b"1"


# --- what a node gets and gives back


def example(root, **more):
    given = {"name": "a", "commands": ["true"], "params_file": "params.yaml", "root": str(root), "token": "t",
             "files": {}, "folders": {}}  # fmt: skip
    return Task(**given | more)


@pytest.mark.slow
def test_a_node_with_other_code_is_refused():
    code = "cache/sample/code/loss-ce"
    own = cluster.own_fingerprints(ROOT, "params.yaml")["loss-ce"].encode()
    check_code(example(ROOT, files={code: own, "params.yaml": b""}), ROOT)
    with pytest.raises(ValueError, match=r"has another version of the code in .*pat: .* 'loss-ce' differs"):
        check_code(example(ROOT, files={code: own + b"\n"}), ROOT)
    with pytest.raises(ValueError, match="'loss-new' differs"):
        check_code(example(ROOT, files={"cache/sample/code/loss-new": own}), ROOT)


def test_arrays_reach_a_node_once_and_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("PAT_NODE_FOLDER", str(tmp_path / "node"))
    (tmp_path / "arrays" / "deep").mkdir(parents=True)
    (tmp_path / "arrays" / "deep" / "x.npy").write_bytes(b"\x00\xff")
    fetched = []

    def fetch():
        fetched.append(1)
        if len(fetched) == 1:
            raise ConnectionError("half of it")
        return pack(tmp_path / "arrays")

    with pytest.raises(ConnectionError):
        kept("k", fetch)
    for _ in range(2):
        assert (kept("k", fetch) / "deep" / "x.npy").read_bytes() == b"\x00\xff"
    assert len(fetched) == 2


def test_only_what_a_task_has_written_comes_back(tmp_path):
    (tmp_path / "arrays").mkdir()
    (tmp_path / "arrays" / "images.npy").write_bytes(b"large")
    root = tmp_path / "task"
    (root / "results").mkdir(parents=True)
    (root / "cache").symlink_to(tmp_path / "arrays", target_is_directory=True)
    for name, text in {"params.yaml": "given", "results/run.json": "{}", "lock": ""}.items():
        (root / name).write_text(text)
    assert written(example(root, files={"params.yaml": b"given"}), root) == {"results/run.json": b"{}"}


def test_a_task_knows_what_its_stage_reads(project):  # noqa: F811
    from dvc.repo import Repo

    root = project({"a": stage("cat in/x notes.txt", ["in", "one.txt"], ["out"])})
    (root / "in").mkdir()
    for name in ("in/x", "one.txt", "notes.txt"):
        (root / name).write_text(name)
    (found,) = Repo(str(root)).stage.collect("a")
    found.save_deps()
    task = task_of(found, root, "params.yaml", "token")
    assert set(task.files) == {"dvc.yaml", "params.yaml", "notes.txt", "one.txt"}
    assert list(task.folders) == ["in"] and len(task.folders["in"]) == 32


@pytest.mark.slow
def test_a_notebook_runs_in_the_folder_of_its_task(tmp_path):
    from nbformat import v4, write

    cells = [v4.new_code_cell("from pat.params import ROOT; open('where', 'w').write(str(ROOT))")]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(v4.new_notebook(cells=cells), tmp_path / name / "a.ipynb")
        task = example(tmp_path, commands=["papermill a.ipynb b.ipynb -k python3", "echo done"])
        status, said = cluster.run_commands(task, tmp_path / name)
        assert status == 0 and said.endswith("done\n"), said
        assert (tmp_path / name / "where").read_text() == str(tmp_path / name)
    status, said = cluster.run_commands(example(tmp_path, commands=["echo why", "exit 3"]), tmp_path)
    assert (status, said.splitlines()[1]) == (3, "why")


# --- addresses


@pytest.mark.parametrize(("address", "message"), [
    ("127.0.0.1:1", r"no Ray head answers at 127\.0\.0\.1:1 \(.*refused\): start one there with `ray start"),
    ("head", "the address is 'head', expected host:port of a Ray head"),
    ("head:", "the address is 'head:', expected host:port"),
    ("nowhere.invalid:6379", r"no Ray head answers at nowhere\.invalid:6379"),
])  # fmt: skip
def test_an_address_that_does_not_answer(address, message):
    with pytest.raises(ValueError, match=message):
        knock(address)


def test_something_else_at_the_address_is_no_cluster(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"Ray does not connect to {address}: whatever answers there is no"):
            cluster.Cluster(Place(tmp_path, address, 1, 1, hello=6), "params.yaml")


@pytest.mark.slow
def test_the_command_names_an_address_that_does_not_answer(project):  # noqa: F811
    command = begun(project({}), "127.0.0.1:1")
    assert "error: no Ray head answers at 127.0.0.1:1" in command.communicate(timeout=60)[0] and command.returncode == 1


def test_without_ray_the_command_says_what_to_install(project):  # noqa: F811
    root = project({})
    script = "import sys; sys.modules['ray'] = None; import pat.jobs; pat.jobs.main()"
    command = [sys.executable, "-c", script, "dvc.yaml", "--root", str(root), "--ray"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1 and "pip install 'pat-segmentation[cluster]'" in done.stderr


def test_knocking_takes_its_time_only_if_nobody_answers():
    start = time.time()
    with socket.create_server(("127.0.0.1", 0)) as other:
        knock(f"127.0.0.1:{other.getsockname()[1]}")
    assert knock(None) is None and time.time() - start < 1
