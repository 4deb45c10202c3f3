"Every formula in a notebook or page renders: as MathML, with nothing of its LaTeX left over."

import re

import nbformat
import pytest
from latex2mathml.converter import convert

from pat.params import ROOT

NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$(?! )([^$\n]+?)(?<! )\$", re.DOTALL)


def texts(notebook):
    "The Markdown of a notebook: its cells, and what its code shows as Markdown."
    for cell in nbformat.read(notebook, 4).cells:
        if cell.cell_type == "markdown":
            yield cell.source
        for output in cell.get("outputs", []):
            yield "".join(output.get("data", {}).get("text/markdown", ""))


def formulas(text):
    "The LaTeX between dollar signs, outside of code."
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [block or inline for block, inline in FORMULA.findall(text)]


def left_over(formula):
    "What of a formula is shown as LaTeX instead of being drawn."
    drawn = re.sub(r"<[^>]+>", " ", convert(formula))
    return re.findall(r"\\\w*", drawn)


FORMULAS = {path: [each for text in texts(path) for each in formulas(text)] for path in NOTEBOOKS}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT / "nbs")))
def test_formulas_render(notebook):
    for formula in FORMULAS[notebook]:
        assert left_over(formula) == [], formula
        assert not re.search(r"\\\\[a-z]", formula), formula  # a doubled backslash is a line break, and letters


def test_latex_that_is_not_drawn_is_seen():
    assert left_over(r"\beta_T") == [] and left_over(r"\nosuchmacro{x}") == [r"\nosuchmacro"]


def test_there_are_formulas():
    found = [formula for notebook in NOTEBOOKS for formula in FORMULAS[notebook]]
    assert len(found) > 150 and any("\n" in formula for formula in found)
