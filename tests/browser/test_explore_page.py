"""The page in a real browser without a screen: what a person does, and what is then to be seen.

Run by ``make test-browser``. The browser is that of ``CHROMIUM``, else the system's, else
playwright's own. Screenshots go to the folder ``SCREENSHOTS``, where it is set.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

import sparse_retrieval as sr

N, D = 400, 24


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((25, D))
    x = (centres[rng.integers(0, 25, N)] + 0.4 * rng.standard_normal((N, D))).astype(np.float32)
    np.save(folder / "x.npy", x)
    sr.SparseIndex.from_embeddings(x, k=16, n_atoms=60, rounds=3).save(folder / "items.sridx")
    names = [f"item {i}" for i in range(N)]
    names[7] = "<img src=x onerror=\"document.title='owned'\"> tea & biscuits"
    (folder / "names.txt").write_text("\n".join(names) + "\n")
    command = [sys.executable, "-m", "sparse_retrieval.cli", "explore", "items.sridx"]
    command += ["--names", "names.txt", "--x", "x.npy", "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().rpartition(" at ")[2].strip()
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    problems: list[str] = []
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda r: None if r.url.startswith((url, "data:")) else problems.append(r.url)
    )
    page.goto(url)
    expect(page.locator("#atoms .atom")).to_have_count(12)
    yield page
    assert problems == [], "no errors, and nothing asked of anyone else"
    page.close()


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_an_item_is_found_picked_and_explained(page: Page) -> None:
    expect(page.locator("#name")).to_have_text("item 0")
    page.fill("#find", "item 12")
    expect(page.locator("#items li")).to_have_count(11)  # item 12, item 120 to 129
    page.click("#items button >> nth=0")
    expect(page.locator("#name")).to_have_text("item 12")
    expect(page.locator("#items button[aria-current]")).to_have_text("item 12")
    page.click(".atom > button >> nth=0")
    expect(page.locator(".detail")).to_contain_text("items; these with the largest")
    expect(page.locator(".detail li")).not_to_have_count(0)
    page.click(".atom > button >> nth=0")
    expect(page.locator(".detail")).to_have_count(0)
    page.click("#more")
    expect(page.locator("#atoms .atom")).to_have_count(16)
    expect(page.locator("#by-code li")).to_have_count(10)
    expect(page.locator("#by-original li")).to_have_count(10)
    expect(page.locator("#shared")).to_contain_text("of 10 are the same")
    keep(page, "item")


def test_the_curve_is_drawn_and_a_neighbour_leads_on_and_back(page: Page) -> None:
    expect(page.locator("#curve svg polyline")).to_have_count(2)
    expect(page.locator("#curve-note")).to_contain_text("of the items, each without itself")
    neighbour = page.locator("#by-code button").first.inner_text()
    page.locator("#by-code button").first.click()
    expect(page.locator("#name")).to_have_text(neighbour)
    page.go_back()
    expect(page.locator("#name")).to_have_text("item 0")
    page.reload()
    expect(page.locator("#name")).to_have_text("item 0")


def test_names_are_text_and_nothing_else(page: Page) -> None:
    page.fill("#find", "biscuits")
    page.click("#items button >> nth=0")
    expect(page.locator("#name")).to_contain_text("tea & biscuits")
    expect(page.locator("#name")).to_contain_text("<img src=x")
    assert page.locator("article img").count() == 0
    assert "tea" in page.title()


def test_an_item_that_is_not_there_is_told(page: Page, url: str) -> None:
    page.fill("#find", "zebra")
    expect(page.locator("#none")).to_be_visible()


def test_a_narrow_dark_screen_needs_no_sideways_scrolling(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 380, "height": 800})
    expect(page.locator("#curve svg polyline")).to_have_count(2)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 380
    keep(page, "narrow")
