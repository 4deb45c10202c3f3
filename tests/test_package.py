"""The package as others install it: built, then put into an environment that has torch and numpy and nothing else."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pat.params import COMMANDS, PACKAGE, ROOT

SETTINGS = configparser.ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]
LIGHT = ["pat.losses", "pat.kernel", "pat.baselines", "pat.released", "pat.metrics"]
HEAVY = ["annotation", "checkup", "datasets", "duplicates", "fetch", "figures", "folder", "predict", "report", "stats"]
HEAVY += ["streets", "tables", "training"]
PURE = {"PYTHONPATH": None, "PYTHONHOME": None, "OMP_NUM_THREADS": "1"}  # nothing of this process's environment


def run(*command: object, folder: Path) -> tuple[int, str]:
    "Exit status of a command that runs in `folder`, and what it wrote."
    env = {key: value for key, value in (os.environ | PURE).items() if value is not None}
    done = subprocess.run([*map(str, command)], cwd=folder, env=env, text=True, stdout=-1, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The files that `python -m build` makes: the sdist, and the wheel from what is in the sdist."
    source = tmp_path_factory.mktemp("source")
    for path in ROOT.iterdir():  # what has been built here before would fill gaps
        if path.is_file():
            shutil.copy(path, source)
    shutil.copytree(ROOT / "pat", source / "pat", ignore=shutil.ignore_patterns("__pycache__"))
    status, output = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", folder=source)
    assert status == 0, output
    return {".whl": next(source.glob("dist/*.whl")), ".gz": next(source.glob("dist/*.tar.gz"))}


def required(name: str, found: dict[str, Distribution]) -> None:
    "Add the distribution `name` and all that it requires to `found`."
    dist = distribution(name)
    if dist.name not in found:
        found[dist.name] = dist
        for requirement in map(Requirement, dist.requires or []):
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                required(requirement.name, found)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    "A folder with links to torch, numpy, what they require, and setuptools to build with; nothing is installed again."
    folder, found = tmp_path_factory.mktemp("libraries"), {}
    for name in ("torch", "numpy", "setuptools"):
        required(name, found)
    for dist in found.values():
        for top in {Path(file).parts[0] for file in dist.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(dist.locate_file(top))
    return folder


@pytest.fixture(scope="module")
def install(built, libraries, tmp_path_factory):
    "Function: install a built file beside torch and numpy, return the Python of that environment."

    def install(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, symlinks=True)
        python = folder / "bin" / "python"
        next(folder.glob("lib/*/site-packages")).joinpath("libraries.pth").write_text(str(libraries))
        # without an index pip has nowhere to take a requirement from that is not there
        options = ["--no-index", "--no-build-isolation", "--no-compile", "--disable-pip-version-check"]
        pip = [sys.executable, "-m", "pip", "--python", python]
        status, output = run(*pip, "install", *options, built[kind], folder=folder)
        assert status == 0, output
        return python

    return install


@pytest.fixture(scope="module")
def python(install):
    "Python of an environment in which the wheel is installed beside torch and numpy."
    return install(".whl")


def answer(python: Path, code: str) -> tuple[int, str]:
    "Exit status and output of `code`, away from the project."
    return run(python, "-c", code, folder=python.parent)


USE = f"""
import torch
import {", ".join(LIGHT)}
assert "site-packages" in pat.losses.__file__
logits, target = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randint(3, (2, 4, 5))
counts = {{"class_pixels": torch.tensor([5, 2, 1]), "class_images": torch.tensor([5, 2, 1])}}
for name in ("pat", "ce", "ldam", "pat-released"):
    pat.baselines.build_loss(name, **counts)(logits, target).backward()
    assert logits.grad.abs().sum() > 0
    logits.grad = None
print(pat.metrics.confusion_matrix.__name__)
"""


@pytest.mark.slow
def test_losses_and_metrics_work_beside_torch_and_numpy_alone(python):
    assert answer(python, USE) == (0, "confusion_matrix\n")


@pytest.mark.slow
def test_the_sdist_installs_too(install):
    python = install(".gz")
    status, output = answer(python, "import pat; print(pat.__version__, pat.__file__)")
    assert status == 0 and output.startswith(SETTINGS["version"]) and "site-packages" in output


@pytest.mark.slow
def test_what_needs_an_extra_says_which(python):
    needs = {
        "repro": [f"import pat.{module}" for module in HEAVY],
        "models": ["import pat.models; pat.models.build_model('smp/Unet/resnet18', 3)",
                   "import pat.baselines; pat.baselines.build_loss('dice')"],
    }  # fmt: skip
    code = f"""
for extra, statements in {needs}.items():
    for statement in statements:
        try:
            exec(statement)
        except ImportError as error:
            print(extra, error)
        else:
            print(extra, statement, "works")
"""
    status, output = answer(python, code)
    assert status == 0 and len(output.splitlines()) == len(HEAVY) + 2, output
    for line in output.splitlines():
        extra = line.split()[0]
        assert re.fullmatch(rf"{extra} No module named '\w+'\. .* pip install '{PACKAGE}\[{extra}\]'", line), line


def test_commands_answer_in_a_sentence(python):
    commands = sorted(path.name for path in python.parent.glob("pat-*"))
    assert commands == [f"pat-{name}" for name in sorted(COMMANDS)]
    for command in ("pat-fetch", "pat-params"):  # the first needs it when it is imported, the second when it reads
        (python.parent / "params.yaml").touch()
        status, output = run(python.parent / command, "params.yaml", folder=python.parent)
        assert status == 1 and re.fullmatch(rf"error: .* pip install '{PACKAGE}\[repro\]'\n", output), output


def test_the_wheel_says_what_it_is(built):
    assert SETTINGS["lib_name"] == PACKAGE
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = {name.split("/", 1)[1]: name for name in wheel.namelist()}
        metadata = Parser().parsestr(wheel.read(names["METADATA"]).decode())
        shipped = {name for name in wheel.namelist() if name.startswith("pat/")}
    assert shipped == {f"pat/{path.name}" for path in (ROOT / "pat").iterdir() if path.is_file()}
    assert "pat/py.typed" in shipped and "licenses/LICENSE" in names
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    assert {requirement.name for requirement in requirements if not requirement.marker} == {"torch", "numpy"}
    assert set(metadata.get_all("Provides-Extra")) == {"models", "repro", "cluster", "dev"}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= set(metadata.get_all("Classifier"))
    assert f"Source, {SETTINGS['git_url']}" in metadata.get_all("Project-URL")


def test_the_sdist_holds_what_it_is_built_from(built):
    with tarfile.open(built[".gz"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "pat/py.typed"} <= names
    assert not {name for name in names if name.startswith(("tests", "nbs", "results"))}


@pytest.mark.slow
def test_importing_a_loss_imports_nothing_but_torch():
    # the time of an import is that of the modules that it loads; which these are does not depend on the machine
    code = f"""
import sys, numpy, torch
before = set(sys.modules)
import {", ".join(LIGHT)}
print(*{{name.partition(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names)
"""
    status, output = run(sys.executable, "-c", code, folder=ROOT)
    assert (status, set(output.split()) - {"torch", "numpy"}) == (0, {"pat"}), output


def test_the_lock_has_every_package_of_the_ranges_in_its_range():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines if line[0] != "#")}
    keys = ["requirements", *(f"{extra}_requirements" for extra in ("models", "repro", "dev"))]
    for requirement in (Requirement(text) for key in keys for text in SETTINGS[key].split()):
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, requirement
