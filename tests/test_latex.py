"The tables' LaTeX, as pdflatex sets it: it compiles, fits the text, and says what the Markdown says."

import re
import shutil
import subprocess

import pandas as pd
import pytest

from pat.params import ROOT, write_file
from pat.tables import latex_table, latex_text, readable, with_paper, write_table

pytestmark = pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not on the PATH")
DOCUMENT = r"""\documentclass{article}
\usepackage{array,booktabs,graphicx}
\begin{document}
%s
\end{document}
"""


def compile_tables(folder, files):
    "Set the .tex `files` in one article, a page each: what pdflatex logs."
    inputs = "\n".join(rf"\input{{{file}}}\clearpage" for file in files)
    write_file(folder / "article.tex", DOCUMENT % inputs)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "article.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    log = (folder / "article.log").read_text(errors="replace").replace("\n", "")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in log
    return log


def misfits(log):
    "Points by which lines are wider than their column, and floats higher than the page."
    return [
        float(points) for points in re.findall(r"(?:Overfull \\hbox \(|Float too large for page by )([\d.]+)pt", log)
    ]


def wide(datasets=("oxford_pet",), models=("unet", "attunet", "unet++")):
    "A table of eleven columns and more: each value with its interval, the paper's number and the difference."
    losses = ["ce", "cb-focal", "pat-inverse", "pat-exponential", "pat-exponential-T10", "ldam-released", "100 %"]
    cell = "**-35.3** [-34.6, +36.1] (paper 76.14, -40.84)"
    rows = [{"dataset": d, "model": m, "loss": loss} for d in datasets for m in models for loss in losses]
    return pd.DataFrame([row | {f"mIoU_{i} − ce": cell for i in range(9)} for row in rows])


def test_wide_tables_and_tables_of_prose_compile_and_fit(tmp_path):
    prose = (
        "27 paired differences over test images & seeds; weakest: camvid, unet++, β = 0.5, T_10 {#3} ~ 5 % ^2 ≤ ±1 × 2"
    )
    claims = {
        "claim": "C1", "statement": prose, "PAT": "pat-exponential", "evidence": prose,
        "weakest": "−1.31 [−2.21, +0.20] times cross-entropy's", "verdict": "**undecided**", "decides": prose,
    }  # fmt: skip
    tables = {
        "table1": wide(models=["segnet"]), "table2": wide(), "paper2": wide(["oxford_pet", "cityscapes", "nyuv2"]),
        "high": wide(models=["segnet"] * 4)[["loss", "mIoU_0 − ce", "mIoU_1 − ce"]],
        "claims": pd.DataFrame([claims] * 14), "small": pd.DataFrame({"loss": ["ce"], "mIoU": ["**35.3**"]}),
    }  # fmt: skip
    for name, shown in tables.items():
        write_file(tmp_path / f"{name}.tex", latex_table(shown, name, "In %, [95 % interval]; `unet++`_x & \\ < 1."))
    # the prose is in columns that break lines, the values are not
    assert (tmp_path / "claims.tex").read_text().count("p{") == 4
    assert "p{" not in (tmp_path / "table1.tex").read_text()
    log = compile_tables(tmp_path, tables)
    assert [points for points in misfits(log) if points > 2] == []
    assert "multiply defined" not in log


@pytest.mark.parametrize(("rows", "columns", "scaled"), [(1, 1, ""), (1, 9, "width"), (28, 1, "height")])
def test_only_a_table_that_does_not_fit_is_scaled(tmp_path, rows, columns, scaled):
    shown = wide(models=["segnet"] * 4)[:rows].iloc[:, 2 : 3 + columns]
    tex = latex_table(shown, "measured", "Measured.")
    size, box = re.search(r"(\\footnotesize.*)\n([\s\S]*)\n\\end\{table\*\}", tex).groups()
    tabular = re.search(r"\\begin\{tabular\}[\s\S]*\\end\{tabular\}(?=\}\})", box)[0]
    lengths = (
        r"\the\wd0/\the\wd2/\the\textwidth/\the\dimexpr\ht0+\dp0\relax/\the\dimexpr\ht2+\dp2\relax/\the\textheight"
    )
    write_file(tmp_path / "measured.tex", rf"{size}\sbox0{{{tabular}}}\sbox2{{{box}}}\typeout{{lengths {lengths}}}x")
    log = compile_tables(tmp_path, ["measured"])
    lengths = re.search(r"lengths " + "/".join([r"([\d.]+)pt"] * 6), log).groups()
    wide_before, wide_after, width, high_before, high_after, height = map(float, lengths)
    assert (wide_before > width, high_before > 0.85 * height) == (scaled == "width", scaled == "height")
    factor = {"": 1, "width": width / wide_before, "height": 0.85 * height / high_before}[scaled]
    assert (wide_after, high_after) == pytest.approx((factor * wide_before, factor * high_before), rel=0.001)


def test_a_dataset_is_a_float_of_its_own():
    tex = latex_table(wide(["oxford_pet", "nyuv2"]), "table2", "Table 2: Models.")
    assert tex.count(r"\begin{table*}") == 2
    assert r"\label{tab:table2-oxford_pet}" in tex and r"\caption{Models. Dataset: oxford\_pet.}" in tex


def test_text_is_escaped_once():
    assert latex_text("5 % of a_b & {#1} \\ ~ ^ $") == (
        r"5 \% of a\_b \& \{\#1\} \textbackslash{} \textasciitilde{} \textasciicircum{} \$"
    )
    assert latex_text("**-0.4** [-1.0, 2.0] `pat-T10`, +1−2") == (
        r"\textbf{$-$0.4} [$-$1.0, 2.0] \texttt{pat-T10}, +1$-$2"
    )


def test_what_write_table_writes_compiles(tmp_path):
    row = {
        "dataset": "oxford_pet",
        "model": "segnet",
        "method": "ce",
        "seeds": 3,
        "low": float("nan"),
        "high": float("nan"),
    }
    values = pd.DataFrame([
        row | {"loss": loss, "metric": metric, "value": value}
        for loss in ("ce", "cb-focal") for metric, value in (("miou_released", 70.0), ("dice_error", 0.3))
    ])  # fmt: skip
    values = with_paper(values, 1)
    write_table(readable(values, ["miou_released", "dice_error"]), values, tmp_path, "table1", "In %.")
    assert "paper 76.14" in (tmp_path / "table1.tex").read_text()
    assert misfits(compile_tables(tmp_path, ["table1"])) == []


def test_the_tables_in_git_compile_and_fit(tmp_path):
    files = sorted(ROOT.glob("results/*/tables/*.tex"))
    assert files
    assert [points for points in misfits(compile_tables(tmp_path, files)) if points > 2] == []
