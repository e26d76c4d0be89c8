"""The HTML report in a real browser: make test-report."""

from __future__ import annotations

import zipfile

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = [pytest.mark.browser, pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

FIGURES = ("decoupling", "static dynamic", "scores", "dial", "capability")


@pytest.fixture
def browser():
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1600,1200"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(
        options=options, service=webdriver.ChromeService("/usr/bin/chromedriver")
    )
    yield found
    found.quit()


def click(browser, text):
    """Click what says `text`, once it is there."""
    path = f"//*[normalize-space(text())='{text}']"
    WebDriverWait(browser, 60).until(lambda b: b.find_elements(By.XPATH, path))
    browser.execute_script("arguments[0].click()", browser.find_elements(By.XPATH, path)[0])


def test_every_figure_is_shown_and_nothing_complains(finished, browser, tmp_path):
    finished.run("--report", "report.zip")
    zipfile.ZipFile(finished.folder / "report.zip").extractall(tmp_path)
    (page,) = tmp_path.glob("*/report.html")
    browser.get(page.as_uri())
    click(browser, "Figures")
    for figure in FIGURES:
        WebDriverWait(browser, 60).until(lambda b, name=figure: name in b.page_source)
    shown = 0
    for button in range(len(FIGURES)):
        links = browser.find_elements(By.CSS_SELECTOR, "a[href*='png'], a[data-path], button")
        assert links
        shown += 1
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []
