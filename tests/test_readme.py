"""What the README promises to whoever imports the loss."""

import json
import re
import subprocess
import sys

import numpy as np

from pat.params import ROOT


def test_the_example_prints_what_the_readme_says():
    code, printed = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.S).groups()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == printed


def test_every_path_in_the_readme_exists():
    links = re.findall(r"\]\(((?!https?:)[^)#]+)", (ROOT / "README.md").read_text())
    assert len(links) >= 5
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_numbers_to_expect_are_those_of_the_reference_run():
    expected = json.loads((ROOT / "tests/expected/sample.json").read_text())
    readme = (ROOT / "README.md").read_text()
    for run, values in expected["miou"].items():
        assert re.search(rf"^{re.escape(run)} +{values[0]:.4f} ", readme, re.M), run
        tail = expected["miou_tail"][run]
        mean = f"| {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} | {np.mean(tail):.3f} "
        assert f"| {run.removeprefix('streets-segnet-')} {mean}" in readme, run


def rows(text):
    "The rows of Markdown tables by their first cell, without empty cells and bold."
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {line[0]: [cell.replace("*", "") for cell in line[1:] if cell] for line in lines}


def test_the_numbers_of_camvid_are_those_of_its_tables():
    tables = [rows((ROOT / f"results/camvid/tables/{name}.md").read_text()) for name in ("table1", "table1b")]
    shown = rows(re.search(r"\| loss \| mIoU \| tail \| tail − ce.*?\n\n", (ROOT / "README.md").read_text(), re.S)[0])
    losses = set(shown) - {"loss", "---"}
    assert losses == set(tables[0]) - {"loss"} - {name for name in tables[0] if name.startswith(":")}
    for loss in losses:
        assert set(shown[loss]) <= {cell for table in tables for cell in table[loss]}, loss


def test_the_numbers_of_the_pretrained_regime_are_those_of_its_tables():
    tables = [rows((ROOT / f"results/pretrained/tables/{name}.md").read_text()) for name in ("table1", "table1b")]
    shown = rows(re.search(r"\| loss, as tuned.*?\n\n", (ROOT / "README.md").read_text(), re.S)[0])
    numbers = [cells for name, cells in shown.items() if name not in ("loss, as tuned", "---")]
    losses = [name for name in tables[0] if name != "loss" and not name.startswith(":")]
    for loss, cells in zip(losses, numbers, strict=True):
        assert set(cells) <= {cell for table in tables for cell in table[loss]}, loss


def test_the_verdicts_are_those_of_the_claims():
    claims = rows((ROOT / "results/camvid/tables/claims.md").read_text())
    shown = rows(re.search(r"\| claim \|.*?\n\n", (ROOT / "README.md").read_text(), re.S)[0])
    text = (ROOT / "results/camvid/tables/claims.md").read_text().splitlines()
    verdicts, claim = {}, None
    for line in text:
        cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        if len(cells) == 7 and cells[2] in ("holds", "fails", "undecided"):
            claim = cells[0] or claim
            verdicts.setdefault(claim, []).append(cells[2])
    assert set(verdicts) == {f"C{i}" for i in range(1, 9)} <= set(claims)
    for claim, found in verdicts.items():
        assert set(shown[claim][1:]) == set(found), claim
