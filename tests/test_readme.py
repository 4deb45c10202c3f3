"""What the README promises, and that it is its notebook."""

import base64
import json
import re
import subprocess
import sys
from copy import deepcopy

import nbformat
import pytest
from nbclient import NotebookClient

from pat.params import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [page.relative_to(ROOT) for pages in ("*.md", "docs/*.md") for page in ROOT.glob(pages)]


def test_it_is_the_index_notebook(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    from readme import readme

    assert readme() == README, "run `make readme`"


def test_the_example_prints_what_the_readme_says():
    code, printed = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.S).groups()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == printed


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_path_in_a_page_exists(page):
    links = re.findall(r"\]\(((?!https?:)[^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    for link in links:
        assert ((ROOT / page).parent / link).exists(), link


def test_using_it_begins_within_two_screens():
    before = README[: README.index("## Use it")]
    words = len(re.sub(r"\]\([^)]*\)", "]", before).split())
    assert words < 500  # a screen of a laptop holds about 300 words, and the picture half of one


def test_the_picture_is_the_stored_output_of_the_tour():
    cells = nbformat.read(ROOT / "nbs/00_tour.ipynb", 4).cells
    pictures = [output.data["image/png"] for cell in cells if cell.cell_type == "code"
                for output in cell.outputs if "image/png" in output.get("data", {})]  # fmt: skip
    assert (ROOT / "nbs/images/tour.png").read_bytes() in [base64.b64decode(picture) for picture in pictures]


def test_the_numbers_to_expect_are_those_of_the_reference_run():
    expected = json.loads((ROOT / "tests/expected/sample.json").read_text())
    for run in ("streets-segnet-ce", "streets-segnet-pat-exponential"):
        assert re.search(rf"^{run} +{expected['miou'][run][0]:.4f} ", README, re.M), run
        assert f"{expected['miou_tail'][run][0]:.4f} " in README


def shown(notebook):
    "The tables and sentences that the cells of a notebook show."
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {})]


@pytest.mark.parametrize("name", ["index", pytest.param("findings", marks=pytest.mark.slow)])
def test_stored_numbers_are_those_of_the_results(name):
    stored = nbformat.read(ROOT / f"nbs/{name}.ipynb", 4)
    fresh = NotebookClient(deepcopy(stored), resources={"metadata": {"path": str(ROOT / "nbs")}}).execute()
    assert shown(fresh) == shown(stored) and shown(stored)
