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
    for run, values in expected["values"].items():
        assert re.search(rf"^{re.escape(run)} +{values[0]:.4f} ", readme, re.M), run
        tail = expected["tail"][run]
        mean = f"| {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} | {np.mean(tail):.3f} "
        assert f"| {run.removeprefix('streets-segnet-')} {mean}" in readme, run


def test_the_numbers_of_camvid_are_those_of_its_table():
    def rows(text):
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
        return {line[0]: [cell for cell in line[1:] if cell] for line in lines}

    table = rows((ROOT / "results/camvid/tables/table1.md").read_text().replace("**", ""))
    readme = (ROOT / "README.md").read_text()
    shown = rows(re.search(r"\| loss \| mIoU \| tail mIoU \| tail gain.*?\n\n", readme, re.S)[0])
    losses = [name for name in table if name in shown and name != "loss"]
    assert len(losses) >= 4 and set(losses) | {"loss", "---"} == set(shown)
    for loss in losses:
        assert set(shown[loss]) <= set(table[loss]), loss
