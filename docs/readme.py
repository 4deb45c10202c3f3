"""`make readme`: README.md is nbs/index.ipynb with its stored outputs; links start at the project's root."""

import re
from pathlib import Path
from posixpath import normpath

import nbformat

ROOT = Path(__file__).parent.parent


def cell_text(cell: nbformat.NotebookNode) -> str:
    "Source and outputs of a cell as Markdown."
    if cell.cell_type == "markdown":
        return cell.source
    hidden = "remove-input" in cell.metadata.get("tags", [])
    parts = [] if hidden else [f"```python\n{cell.source}\n```"]
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(f"```\n{output.text.rstrip()}\n```")
        else:
            parts.append("".join(output.data["text/markdown"]))
    return "\n\n".join(parts)


def readme() -> str:
    "The text of README.md."
    cells = nbformat.read(ROOT / "nbs/index.ipynb", 4).cells
    text = "\n\n".join(cell_text(cell) for cell in cells) + "\n"
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", lambda link: f"]({normpath('nbs/' + link[1])})", text)


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8", newline="\n")
