"The report as a browser draws it: built by the pipeline's own commands from a results folder made by hand."

import re
import shutil
import subprocess

import matplotlib.pyplot as plt
import pytest
import yaml
from playwright.sync_api import sync_playwright

from pat.figures import figure_style, write_figure
from pat.params import ROOT, write_file

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason=f"no browser found: none of {', '.join(NAMES)} is on the PATH")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
WIDTHS = (1280, 390)  # a laptop's and a phone's, in CSS pixels

# elements that stick out of the window, other than inside a box that scrolls or clips
OUTSIDE = """() => {
  const scrolls = node => node &&
    (['auto', 'scroll', 'hidden'].includes(getComputedStyle(node).overflowX) || scrolls(node.parentElement))
  return [...document.querySelectorAll('main *')]
    .filter(node => node.getBoundingClientRect().right > innerWidth + 1 && !scrolls(node.parentElement))
    .map(node => node.outerHTML.slice(0, 80))
}"""


def make_results(folder):
    "Two tables, the verdicts and two figures; all else is missing."
    cell = "**35.3** [34.6, 36.1] (paper 76.14, -40.84)"
    loss = "| pat-exponential-T10 |" + f" {cell} |" * 10
    head = "| loss |" + " mIoU as released |" * 10 + "\n|" + ":---|" * 11
    prose = "27 paired differences on the test images; weakest: unet++ over class-balanced focal"
    claims = "| verdict | claim | PAT | statement |\n|:--|:--|:--|:--|\n" + f"| **holds** | C1 | PAT | {prose} |\n" * 8
    tables = {"claims": claims, "table1": f"{head}\n" + f"{loss}\n" * 9, "table2": f"{head}\n" + f"{loss}\n" * 24}
    for name, rows in tables.items():
        write_file(folder / f"tables/{name}.md", f"A caption with 100 % of it and $\\beta_T$.\n\n{rows}")
        for ending in ("csv", "tex"):
            write_file(folder / f"tables/{name}.{ending}", "made by hand\n")
    write_file(folder / "tables/claims.csv", "claim,pat,verdict\nC1,PAT,holds\n")
    figure_style()
    for name, size in {"figure2": (7, 5), "figure3": (3.4, 2)}.items():
        fig, _ = plt.subplots(figsize=size)
        write_figure(fig, folder / "figures", name, "The caption, with $p_y \\le 1$ in it.")
        plt.close(fig)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    "report.html, made as the stage `report` of dvc.yaml makes it."
    folder = tmp_path_factory.mktemp("results") / "sample"
    make_results(folder)
    (folder / "notebooks").mkdir()
    for command in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["report"]["cmd"]:
        command = command.replace("results/${profile}", str(folder)).replace("${profile}", "sample")
        done = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    return folder / "report.html"


@pytest.fixture(scope="module", params=WIDTHS)
def page(request, report):
    "The page in a window of some width, with what it asked for and complained about."
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        page = browser.new_page(viewport={"width": request.param, "height": 900})
        page.requested, page.complaints = [], []
        page.on("request", lambda asked: page.requested.append(asked.url))
        page.on("console", lambda said: page.complaints.append(said.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(report.as_uri())
        yield page


def test_nothing_is_wider_than_the_window(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(OUTSIDE) == []


def test_the_verdict_stays_while_its_table_scrolls(page):
    place = "cell => cell.getBoundingClientRect().left"
    verdict = page.locator("table").first.locator("td").first
    before = verdict.evaluate(place)
    page.locator("table").first.evaluate("table => { table.scrollLeft = 60 }")
    assert verdict.inner_text() == "holds" and verdict.evaluate(place) == before


def test_a_wide_table_scrolls_in_its_own_box(page):
    box = page.locator("table").nth(1)  # table 1: eleven columns
    inside, shown = box.evaluate("table => [table.scrollWidth, table.clientWidth]")
    assert shown < inside and shown < page.viewport_size["width"]
    assert box.evaluate("table => { table.scrollLeft = 50; return table.scrollLeft }") == 50


def test_intervals_and_the_papers_numbers_are_unbroken_lines(page):
    cell = page.locator("table").nth(1).locator("td").nth(1)
    assert cell.inner_text().replace("\N{NO-BREAK SPACE}", " ") == "35.3\n[34.6, 36.1]\n(paper 76.14, -40.84)"
    height, line = cell.evaluate("c => [c.clientHeight, parseFloat(getComputedStyle(c).lineHeight)]")
    assert 3 * line < height < 4 * line


def test_every_picture_is_there(page):
    pictures = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.alt.length])")
    assert len(pictures) == 2
    assert all(complete and width > 500 and alt > 10 for complete, width, alt in pictures)


def test_links_of_the_page_lead_somewhere(page, report):
    links = page.evaluate("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    inside = [link[1:] for link in links if link.startswith("#")]
    files = [link for link in links if not re.match("#|https?:", link) and not link.endswith(".ipynb")]
    assert set(inside) <= set(ids)
    assert sorted(files) == sorted(
        [f"tables/{name}.{ending}" for name in ("claims", "table1", "table2") for ending in ("csv", "tex", "md")]
        + [f"figures/{name}.{ending}" for name in ("figure2", "figure3") for ending in ("pdf", "png")]
    )
    assert all((report.parent / file).is_file() for file in files)
    notebooks = {link for link in links if link.endswith(".ipynb")}
    shown = ("claims", "table1", "table2", "figure2", "figure3")
    assert notebooks == {f"../../nbs/paper/{name}.ipynb" for name in shown}
    assert all((ROOT / "results/sample" / notebook).resolve().is_file() for notebook in notebooks)


def test_the_contents_list_the_sections_verdicts_first(page):
    listed = page.locator("nav a").all_inner_texts()
    assert listed == [text.rstrip("¶") for text in page.locator("h2").all_inner_texts()]
    assert listed[:2] == ["In short", "Verdicts"] and len(listed) >= 13
    assert "Of the paper's claims, C1 holds." in page.locator("main").inner_text()
    page.locator("nav a").nth(5).click()
    page.wait_for_function("document.querySelectorAll('h2')[5].getBoundingClientRect().top < innerHeight")
    page.wait_for_function("document.querySelectorAll('h2')[5].getBoundingClientRect().top >= -1")
    page.evaluate("scrollTo(0, 0)")


def test_formulas_are_drawn_without_a_script(page):
    heights = page.evaluate("[...document.querySelectorAll('math')].map(m => m.getBoundingClientRect().height)")
    assert len(heights) >= 10 and min(heights) > 5
    assert "$" not in page.locator("main").inner_text() and page.locator("script").count() == 0


def test_what_is_missing_is_said_with_the_command_that_makes_it(page):
    text = page.locator("main").inner_text()
    stages = ["figure1", *(f"figure{number}" for number in range(4, 12)), "equations6_7"]
    for stage in [*stages, "table1", "table3", "curves", "claims", "choose"]:
        assert f"dvc repro {stage} makes it." in text, stage
    assert "tables/table1.md" not in text and "figures/figure2" not in text


def test_the_page_asks_for_nothing_and_complains_of_nothing(page, report):
    page.reload()
    page.wait_for_load_state("networkidle")
    assert set(page.requested) == {report.as_uri()}
    assert page.complaints == []
