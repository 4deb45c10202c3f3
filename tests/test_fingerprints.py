"What the stages depend on: prose changes no fingerprint, and a changed operator those that reach it and no other."

import json
import re
import shutil

import pytest
import yaml

from pat.fingerprints import fingerprints, main, reached, read_code
from pat.params import ROOT, load_params

PARAMS = load_params("params.yaml")
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.fixture
def project(tmp_path):
    "A copy of the code."
    for name in ("pat", "nbs/experiments", "nbs/paper"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def changed(project, file, old, new):
    "The fingerprints that an edit of the first `old` in a file changes."
    before, text = fingerprints(project, PARAMS), (project / file).read_text()
    assert old in text, (file, old)
    (project / file).write_text(text.replace(old, new, 1))
    after = fingerprints(project, PARAMS)
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("pat/losses.py", '"phi = (1 - p_y)^gamma and', '"The weight (1 - p_y)^gamma and'),  # docstrings
        ("pat/models.py", '"""', '"""Networks. '),
        ("pat/training.py", "  # one synchronisation an epoch", ""),  # comments
        ("pat/training.py", "    epochs: int  # passes over the", "    epochs: int  # how often over the"),
        ("pat/metrics.py", "    hit = np.diagonal(matrix,", "\n    hit = np.diagonal(\n        matrix,"),
        ("pat/figures.py", "def figure_style()", "\n\n\ndef figure_style()"),  # layout
    ],
)
def test_prose_changes_nothing(project, file, old, new):
    assert changed(project, file, old, new) == set()


@pytest.mark.slow
def test_a_notebook_that_was_run_and_annotated_changes_nothing(project):
    before = fingerprints(project, PARAMS)
    for file in project.glob("nbs/*/*.ipynb"):
        notebook = json.loads(file.read_text())
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": "9"}], "execution_count": 9}
                cell["source"] = ["%matplotlib inline\n", "# a remark\n", *cell["source"]]
            else:
                cell["source"] = ["Other words"]
        file.write_text(json.dumps(notebook))
    assert fingerprints(project, PARAMS) == before


def training_of(names):
    "The fingerprints among `names` that trainings depend on."
    return {name for name in names if name == "train" or name.startswith(("loss-", "model-"))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("pat/losses.py", "return miss**gamma,", "return 1 * miss**gamma,", {"loss-focal", "loss-cb", "loss-cb-focal"}),
        ("pat/baselines.py", '"cb-focal": partial(ClassBalancedLoss, gamma=2.0)', '"cb-focal": ClassBalancedLoss',
         {"loss-cb-focal"}),
        ("pat/models.py", "class AttentionGate(nn.Module):", "class AttentionGate(nn.Module):\n    new = 1\n",
         {"model-attunet"}),
        ("pat/training.py", "torch.stack(losses).mean()", "torch.stack(losses).median()", {"train"}),
        ("pat/metrics.py", "return ratio(hit, ", "return 1 * ratio(hit, ", {"train"}),  # which epoch is the best
        ("pat/training.py", 'f"table of {file}"', 'f"some table of {file}"', set()),  # a check
        ("pat/checkup.py", "FEW = 5", "FEW = 6", set()),
        ("pat/figures.py", "font_scale=0.9", "font_scale=1.0", set()),
        ("pat/encoders.py", 'mode="replicate"', 'mode="reflect"', set()),  # no network of the sample is from smp
        ("nbs/experiments/train.ipynb", "train(settings, data, checkpoints,", "train(settings, data, 0,", {"train"}),
    ],
)  # fmt: skip
def test_a_changed_operator_trains_what_it_touches(project, file, old, new, expected):
    assert training_of(changed(project, file, old, new)) == expected


@pytest.mark.slow
def test_a_changed_picture_is_drawn_anew_and_nothing_else(project):
    found = changed(project, "nbs/paper/figure2.ipynb", "share of pixels", "part of the pixels")
    assert found == {"figure2"}
    assert changed(project, "pat/checkup.py", "FEW = 5", "FEW = 6") == {"prepare"}


def test_code_that_runs_whoever_is_imported_counts_for_all(tmp_path):
    (tmp_path / "one.py").write_text("register('x')\ndef a(): pass\nif __name__ == '__main__': a()\n")
    lines = reached(read_code(tmp_path), [("one", "a")])
    assert len(lines) == 2 and lines[0].startswith("one. ")
    (tmp_path / "one.py").write_text("register('y')\ndef a(): pass\nif __name__ == '__main__': b()\n")
    assert [old == new for old, new in zip(lines, reached(read_code(tmp_path), [("one", "a")]), strict=True)] == [
        False,
        True,
    ]


def test_a_base_class_a_decorator_and_a_default_count(tmp_path):
    source = "K = 1\nclass B: pass\ndef d(f): return f\n@d\nclass A(B):\n    def m(self, k=K): pass\n"
    (tmp_path / "one.py").write_text(source)
    names = [line.split()[0] for line in reached(read_code(tmp_path), [("one", "A")])]
    assert names == ["one.A", "one.B", "one.K", "one.d"]


def test_every_stage_depends_on_the_code_of_its_own_notebook():
    for name, stage in PIPELINE.items():
        stage = stage.get("do", stage)
        code = {dep.rpartition("/")[2] for dep in stage["deps"] if "/code/" in dep}
        notebooks = {*re.findall(r"nbs/\w+/(\w+)\.ipynb", str(stage["cmd"]))}
        rows = {"loss-${item.loss}", "model-${item.model}"} if name in ("train", "tune") else set()
        assert code == notebooks | rows, name
        if name != "check":  # which writes the fingerprints
            assert not [dep for dep in stage["deps"] if dep.startswith("pat") or dep.endswith(".ipynb")], name


@pytest.mark.slow
def test_the_command_writes_a_file_for_each(project, capsys):
    main(["params.yaml", "--root", str(project)])
    assert capsys.readouterr().out == f"cache/sample/code: {len(fingerprints(project, PARAMS))} fingerprints\n"
    assert (project / "cache/sample/code/loss-ce").read_text().startswith("CrossEntropyLoss\n")
    (project / "params.yaml").write_text((project / "params.yaml").read_text().replace("name: focal", "name: fokal"))
    with pytest.raises(SystemExit, match=r"error: there is no 'fokal' in baselines\.LOSSES, released\.RELEASED"):
        main(["params.yaml", "--root", str(project)])


def test_a_cell_that_is_no_python_is_named(project):
    file = project / "nbs/paper/table1.ipynb"
    notebook = json.loads(file.read_text())
    notebook["cells"].append({"cell_type": "code", "source": ["import import"]})
    file.write_text(json.dumps(notebook))
    with pytest.raises(ValueError, match=r"cell \d+ of .*table1\.ipynb is no Python"):
        fingerprints(project, PARAMS)
