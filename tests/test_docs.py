"The documentation site: it builds without a warning, and a browser finds what its links lead to."

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
from playwright.sync_api import sync_playwright
from test_page import CHROMIUM, FLAGS, OUTSIDE

from pat.params import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The folder that `make docs` would write."
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "docs"})
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no browser found")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        yield browser


def test_every_notebook_has_a_page(site):
    for notebook in (ROOT / "nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" not in notebook.parts and notebook.name != "index.ipynb":  # which is the README
            assert (site / notebook.relative_to(ROOT)).with_suffix(".html").is_file(), notebook


def test_every_link_leads_somewhere(site, browser):
    page, anchors, links = browser.new_page(), {}, set()
    page.route("http*://**", lambda route: route.abort())
    for file in sorted(set(site.rglob("*.html")) - {site / "index.html"}):  # which leads to README.html
        page.goto(file.as_uri(), wait_until="domcontentloaded")
        anchors[file] = set(page.evaluate("[...document.querySelectorAll('[id]')].map(node => node.id)"))
        links |= {(file, link) for link in page.evaluate("[...document.links].map(link => link.href)")}
    assert len(links) > 1000
    broken = []
    for file, link in sorted(links):
        address, anchor = urldefrag(link)
        target = Path(unquote(urlparse(address).path))
        there = target.exists() and (not anchor or target not in anchors or unquote(anchor) in anchors[target])
        if address.startswith("file:") and not there:
            broken.append((file.relative_to(site), link))
    assert broken == []


@pytest.mark.parametrize("name", ["README", "nbs/00_tour", "nbs/01_losses", "nbs/paper/claims", "docs/api/losses"])
def test_pages_fit_a_phone(site, browser, name):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((site / f"{name}.html").as_uri(), wait_until="domcontentloaded")
    assert page.evaluate(OUTSIDE.replace("main *", "article *")) == []  # the menus wait beside the window
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_formulas_are_drawn_without_a_script(site, browser):
    page = browser.new_page(java_script_enabled=False)
    page.goto((site / "nbs/01_losses.html").as_uri())
    assert page.locator("math").count() > 20
    assert page.locator("math mfrac").first.bounding_box()["height"] > 15
    assert "\\frac" not in page.locator("article").inner_text()


def test_arguments_stand_on_the_pages_of_the_api(site):
    page = (site / "docs/api/losses.html").read_text()
    assert "label of the pixels that do not count" in page and "pat.losses.PATLoss" in page
