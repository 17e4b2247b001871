"""The pages in a real browser: headless Chromium, driven as a reader would drive it."""

import json
import shutil
import time

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from crosspruner.reporting import write_sweep_report

CHROME = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    CHROME is None or DRIVER is None,
    reason="no chromium and chromedriver here (apt-get install chromium chromium-driver)",
)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def sweep(make_run, tmp_path_factory):
    root = tmp_path_factory.mktemp("browser") / "stamp"
    number = 0
    for grain in ("crossbar", "column"):
        for ratio in (0.3, 0.7):
            status = "failed" if number == 3 else "done"
            make_run(root / str(number), grain=grain, ratio=ratio, steps=4, status=status)
            if number:  # run 0 gets a real page
                (root / str(number) / "report.html").write_text("<title>a run</title>")
            number += 1
    return write_sweep_report(root)


@pytest.fixture
def page(browser, sweep):
    """The page of the sweep, freshly opened at 1200 px in the light."""
    appear(browser, 1200, "light")
    browser.get(sweep.as_uri())
    yield browser
    assert_quiet(browser)


def appear(browser, width: int, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def assert_quiet(browser) -> None:
    """No console message, and no request other than for pages of the run folders."""
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in sent if not url.startswith(("file://", "data:"))] == []
    files = {url.partition("#")[0] for url in sent if url.startswith("file://")}
    assert all(url.endswith("report.html") for url in files)


def shown_runs(browser) -> list[str]:
    rows = browser.find_elements(By.CSS_SELECTOR, "#runs tbody tr:not([hidden])")
    return [row.find_element(By.CSS_SELECTOR, "th a").text for row in rows]


def sort_by(browser, heading: str) -> None:
    xpath = f"//table[@id='runs']//th/button[normalize-space()='{heading}']"
    browser.find_element(By.XPATH, xpath).send_keys(Keys.ENTER)


def colour(browser, selector: str, what: str) -> tuple[float, ...]:
    """Linear-light (r, g, b) of a style property, 0 to 1."""
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    value = browser.execute_script(script, selector, what)
    channels = [int(c) / 255 for c in value[value.index("(") + 1 : -1].split(",")[:3]]
    return tuple(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """WCAG contrast ratio."""
    light, dark = sorted(
        (sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), x, strict=True)) for x in (a, b)),
        reverse=True,
    )
    return (light + 0.05) / (dark + 0.05)


def test_sort_with_the_keyboard(page):
    assert shown_runs(page) == ["0", "1", "2", "3"]
    sort_by(page, "Accuracy")
    accuracies = [
        float(cell.get_attribute("data-value") or "nan")
        for cell in page.find_elements(By.CSS_SELECTOR, "#runs tbody tr td:nth-child(6)")
    ]
    assert accuracies[:3] == sorted(accuracies[:3], reverse=True)
    assert shown_runs(page)[-1] == "3"  # without a value: last, whichever way
    first = shown_runs(page)
    sort_by(page, "Accuracy")
    assert shown_runs(page) == [*first[:3][::-1], "3"]
    assert (
        page.find_element(By.CSS_SELECTOR, "th[aria-sort]").get_attribute("aria-sort")
        == "ascending"
    )


def test_filter_by_choice_and_by_text(page):
    boxes = {
        label.text.splitlines()[0]: label.find_element(By.TAG_NAME, "select")
        for label in page.find_elements(By.CSS_SELECTOR, "#filters label")[1:]
    }
    assert set(boxes) == {"Status", "Grain", "Ratio"}
    Select(boxes["Grain"]).select_by_value("column")
    assert shown_runs(page) == ["2", "3"]
    assert page.find_element(By.ID, "shown").text == "2 of 4 runs"
    dimmed = page.find_elements(By.CSS_SELECTOR, "svg a.dimmed")
    addresses = sorted(mark.get_dom_attribute("xlink:href") for mark in dimmed)
    assert addresses == ["0/report.html", "1/report.html"]
    Select(boxes["Status"]).select_by_value("failed")
    assert shown_runs(page) == ["3"]
    page.find_element(By.CSS_SELECTOR, "#filters button[type=reset]").click()
    WebDriverWait(page, 5).until(lambda b: shown_runs(b) == ["0", "1", "2", "3"])
    page.find_element(By.ID, "search").send_keys("DataError nope")
    assert shown_runs(page) == ["3"]


def test_open_a_run(page):
    page.find_element(By.LINK_TEXT, "0").click()
    WebDriverWait(page, 10).until(lambda b: b.title.startswith("vgg8 on digits"))
    assert page.find_element(By.TAG_NAME, "h1").text == "vgg8 on digits"
    heading = "//button[normalize-space()='Compute, dense']"
    page.find_element(By.XPATH, heading).click()
    layers = [th.text for th in page.find_elements(By.CSS_SELECTOR, "tbody th")]
    assert layers[:2] == ["features.17", "classifier.1"]  # 2,048 each, in the order of the network


def test_compare_two(page):
    boxes = page.find_elements(By.CSS_SELECTOR, "#runs input[type=checkbox]")
    boxes[0].click()
    assert page.find_element(By.ID, "comparison-note").text == "Choose two runs."
    boxes[3].send_keys(Keys.SPACE)
    rows = {
        row.find_element(By.TAG_NAME, "th").text: [
            cell.text for cell in row.find_elements(By.TAG_NAME, "td")
        ]
        for row in page.find_elements(By.CSS_SELECTOR, "#comparison tbody tr")
    }
    assert rows["ratio"] == ["0.3", "0.7"]
    assert "Ratio" not in rows  # the same setting as a column of the table
    assert rows["grain.name"] == ["crossbar", "column"]
    assert rows["Status"][0] == "done"
    assert rows["Status"][1].startswith("failed")
    assert page.find_element(By.ID, "comparison-note").text == "2 settings differ, 15 are the same."
    boxes[1].click()  # a third one takes the place of the first
    assert [box.is_selected() for box in boxes] == [False, True, False, True]
    Select(page.find_element(By.ID, "second")).select_by_visible_text("none")
    assert page.find_elements(By.CSS_SELECTOR, "#comparison tbody tr") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_scheme_and_can_be_read(page, scheme):
    appear(page, 1200, scheme)
    ground = colour(page, "body", "backgroundColor")
    assert (sum(ground) < 0.3) == (scheme == "dark")
    card = colour(page, ".card", "backgroundColor")
    for selector, what in (
        ("body", "color"),
        (".quiet", "color"),
        ("thead th", "color"),
        ("td.status-done", "color"),
        ("td.status-failed", "color"),
        ("tbody th a", "color"),
        ("svg text", "fill"),
    ):
        assert contrast(colour(page, selector, what), card) >= 4.5, selector


@pytest.mark.parametrize("which", ["sweep", "run"])
def test_a_phone_needs_no_sideways_scrolling(page, sweep, which):
    appear(page, 400, "light")
    if which == "run":
        page.get((sweep.parent / "0/report.html").as_uri())
    assert page.execute_script("return document.documentElement.scrollWidth") == 400
    smallest = page.execute_script(
        "return Math.min(...[...document.querySelectorAll('figure svg')].map(s =>"
        " s.getBoundingClientRect().width / s.viewBox.baseVal.width))"
    )
    assert smallest > 0.8  # a text of 10 units is at least 8 px high


def test_every_control_has_a_name_and_a_place_in_the_tab_order(page):
    unnamed = page.execute_script(
        """
        const named = (e) => e.textContent.trim() || e.ariaLabel || e.alt || e.labels?.length
          || e.getAttribute("aria-labelledby");
        const all = "button, input, select, a, img, [role=img], [role=region]";
        return [...document.querySelectorAll(all)].filter((e) => !named(e)).map((e) => e.outerHTML)
        """
    )
    assert unnamed == []
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert page.switch_to.active_element.text == "Skip to the figures"
    assert (
        page.execute_script(
            "return document.querySelectorAll('svg a:not([tabindex=\"-1\"])').length"
        )
        == 0
    )


@pytest.mark.slow
def test_five_hundred_runs_open_at_once(browser, make_run, tmp_path, record_property):
    number = 0
    for crossbar in ("64x64", "128x128", "256x256", "512x512", "32x32"):
        for grain in ("crossbar", "column"):
            for ratio in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9):
                for seed in range(5):
                    status = "failed" if number % 50 == 49 else "done"
                    path = make_run(
                        tmp_path / f"s/{number}",
                        crossbar=crossbar,
                        grain=grain,
                        ratio=ratio,
                        seed=seed,
                        status=status,
                        steps=2,
                    )
                    (path / "report.html").write_text("<title>a run</title>")
                    number += 1
    start = time.perf_counter()
    page = write_sweep_report(tmp_path / "s")
    record_property("seconds_to_write", time.perf_counter() - start)
    assert number == 500
    assert page.stat().st_size < 15_000_000
    record_property("bytes", page.stat().st_size)
    appear(browser, 1200, "light")
    browser.get(page.as_uri())
    timing = "const [t] = performance.getEntriesByType('navigation'); return t.loadEventEnd"
    milliseconds = WebDriverWait(browser, 30).until(lambda b: b.execute_script(timing))
    record_property("milliseconds_to_open", milliseconds)
    print(f"500 runs: {page.stat().st_size:,} bytes, open after {milliseconds:.0f} ms")
    browser.find_element(By.ID, "search").send_keys("512x512 column")
    assert len(shown_runs(browser)) == 49 + 1
    assert_quiet(browser)
