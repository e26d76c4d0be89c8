"""The HTML report in a real browser: make test-report."""

from __future__ import annotations

import zipfile

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("workflow")]

FIGURES = ("capability", "decoupling", "dial", "scores", "static dynamic")
WAIT = 120  # seconds: a busy machine is not a failure

# The pictures that are shown, with their widths in pixels; 0 is one that could not be loaded.
SHOWN = """
return Array.from(document.querySelectorAll('img'))
    .filter(image => image.complete && image.offsetParent !== null)
    .map(image => [image.src.slice(-4000), image.naturalWidth])
"""


@pytest.fixture
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1600,1200"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService("/usr/bin/chromedriver")
    found = webdriver.Chrome(options=options, service=service)
    yield found
    found.quit()


def wait_for(browser, found):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT).until(found)


def test_every_figure_is_shown_and_the_console_is_silent(finished, browser, tmp_path):
    finished.run("--report", "report.zip")
    zipfile.ZipFile(finished.folder / "report.zip").extractall(tmp_path)
    (page,) = tmp_path.rglob("report.html")
    browser.get(page.as_uri())

    def items(text):
        return browser.find_elements("xpath", f"//*[normalize-space(text())='{text}']")

    wait_for(browser, lambda _: items("Figures"))[0].click()
    wait_for(browser, lambda _: items(FIGURES[0]))
    seen = set()

    def unseen(_):
        shown = browser.execute_script(SHOWN)
        return [source for source, width in shown if width > 300 and source not in seen]

    for figure in FIGURES:
        browser.find_elements("xpath", f"//tr[td[normalize-space(.)='{figure}']]//a")[0].click()
        seen.update(wait_for(browser, unseen))
    assert len(seen) == len(FIGURES)
    complaints = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert complaints == []
