"""The documentation site: `make docs` builds it from the notebooks' stored outputs, without a network."""

import json
import pkgutil
import re
from pathlib import Path
from posixpath import normpath

from docutils import nodes
from fastcore.docments import docments
from latex2mathml.converter import convert
from sphinx.application import Sphinx

import pat

ROOT = Path(__file__).parent.parent

project = "pat"
author = copyright = "the pat authors"
release = pat.__version__

# The project's root is the source, so that the links between README, notebooks and results hold here too.
root_doc = "README"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
include_patterns = [
    "*.md", "docs/**.md", "nbs/*.ipynb", "nbs/paper/*.ipynb", "nbs/experiments/*.ipynb", "results/*/tables/*.md",
]  # fmt: skip
exclude_patterns = ["results/sample", "nbs/index.ipynb"]  # the index is the README
html_theme = "sphinx_book_theme"
html_title = "pat"
html_theme_options = {
    "repository_url": "https://github.com/pat-segmentation/pat",
    "use_repository_button": True,
    "use_download_button": False,
    "home_page_in_toc": True,
}
html_static_path = ["static"]
html_css_files = ["pat.css"]
html_extra_path = ["extra"]  # index.html, which leads to the page of the README
html_copy_source = False
html_math_renderer = "mathml"

nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
nb_number_source_lines = False
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
myst_heading_slug_func = "conf.anchor"
default_role = "literal"  # docstrings mark code with one backtick
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"

PAGES = {
    "Learn": ["00_tour", "findings", "01_losses", "03_baselines", "02_kernel", "04_released"],
    "Use": ["use", "own_data", "16_predict"],
    "Check": ["../docs/*", "paper/claims", "paper/table*", "paper/figure*", "paper/curves", "paper/equations6_7",
              "paper/report"],
    "The package": ["0[5-9]_*", "1[0-57-9]_*", "20_*", "experiments/*"],
    "API": ["../docs/api/*"],
    "Project": ["../CONTRIBUTING", "../CHANGELOG"],
}


def anchor(title: str) -> str:
    "The anchor of a heading as GitHub, JupyterLab and our links have it."
    return re.sub(r"[^\w\-,.()]", "", title.strip().replace(" ", "-"))


def toctrees() -> str:
    "What stands in the side bar, as directives."
    text = ""
    for caption, pages in PAGES.items():
        text += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n:glob:\n"
        text += "".join(f"{normpath(f'nbs/{page}')}\n" for page in pages) + "```\n"
    return text


def without_directives(notebook: str) -> str:
    "A notebook without nbdev's `#|` lines, and without the cells that hold nothing else."
    content = json.loads(notebook)
    for cell in content["cells"]:
        lines = "".join(cell["source"]).splitlines(keepends=True)
        cell["source"] = "".join(line for line in lines if not line.startswith("#|")).strip("\n")
    content["cells"] = [cell for cell in content["cells"] if cell["source"]]
    return json.dumps(content)


def read_source(app: Sphinx, page: str, source: list[str]) -> None:
    "Sphinx's hook on the text of a page."
    if page == root_doc:
        source[0] += toctrees()
    elif page.startswith("results/"):
        source[0] = "---\norphan: true\n---\n" + source[0]
    elif source[0].startswith("{"):
        source[0] = without_directives(source[0])


def write_api(app: Sphinx) -> None:
    "A page for each module of the package."
    for module in pkgutil.iter_modules(pat.__path__):
        if not module.name.startswith("_"):
            page = f"# pat.{module.name}\n\n```{{eval-rst}}\n.. automodule:: pat.{module.name}\n   :members:\n```\n"
            (ROOT / "docs/api").mkdir(exist_ok=True)
            (ROOT / f"docs/api/{module.name}.md").write_text(page)


def add_arguments(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    "The comments behind the arguments of a function, or the fields of a class, as a list of Sphinx."
    if what not in ("function", "method", "class"):
        return
    told = {argument: comment for argument, comment in docments(thing).items() if comment and argument != "self"}
    lines += [""] * bool(told)
    for argument, comment in told.items():
        field = "returns" if argument == "return" else f"param {argument}"
        lines.append(f":{field}: {comment}".replace("\n", " ").replace("|", r"\|"))  # bars are markup there


def formula(self: object, node: nodes.Element) -> None:
    "Write a formula as MathML, which a browser draws without a script."
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    self.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    "Sphinx calls this."
    app.connect("builder-inited", write_api)
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", add_arguments)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
