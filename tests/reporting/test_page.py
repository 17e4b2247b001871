import json
import re
from html.parser import HTMLParser

import pytest

from crosspruner.errors import RunFolderError
from crosspruner.reporting import write_run_report


class Reader(HTMLParser):
    """Collects what a page refers to, and whether its elements are closed in order."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        if tag == "img":
            self.images.append(values)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(path) -> tuple[str, Reader]:
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    return text, reader


@pytest.fixture(scope="module")
def finished(make_run, tmp_path_factory):
    """Page of a finished run."""
    return write_run_report(make_run(tmp_path_factory.mktemp("page") / "run"))


def test_page_of_a_finished_run(finished):
    assert finished.name == "report.html"
    text, reader = read(finished)
    assert "vgg8 on digits" in text
    assert "7,238" in text  # dense compute crossbars of the fake network, summed by hand
    assert text.count("<svg") == 5
    assert len(reader.images) == 6
    assert all("survive" in image["alt"] for image in reader.images)
    assert "python train.py model=vgg8 crossbar=256x256" in text
    assert ">nan" not in text.lower()


def test_page_refers_to_nothing_outside_its_folder(finished):
    text, reader = read(finished)
    inside = finished.parent
    assert all(a.startswith(("data:", "#")) or (inside / a).is_file() for a in reader.addresses)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\s\"'<>]+", text)) <= namespaces


def test_page_of_a_failed_run_carries_the_message_escaped(make_run, tmp_path):
    message = "BudgetError: ratio=0.99 <b>cannot</b> be met & so on"
    run = make_run(tmp_path / "run", status="failed", message=message)
    text, _ = read(write_run_report(run))
    assert "This run failed" in text
    assert "BudgetError: ratio=0.99 &lt;b&gt;cannot&lt;/b&gt; be met &amp; so on" in text
    assert "Traceback" in text
    assert text.count("<svg") == 2


def test_page_of_an_empty_and_of_a_broken_run(tmp_path, run_dir):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/FAILED").write_text("")
    assert "carries no message" in read(write_run_report(tmp_path / "empty"))[0]
    (run_dir / "summary.json").write_text("{")
    (run_dir / "metrics.csv").write_text("")
    text, _ = read(write_run_report(run_dir))
    assert "summary.json cannot be read" in text
    assert "metrics.csv cannot be read" in text
    assert "7,238" in text  # from crossbars.csv


def test_deep_network_stays_under_two_megabytes(make_run, deep_network, tmp_path):
    run = make_run(tmp_path / "run", layers=deep_network, grain="column")
    page = write_run_report(run)
    assert read(page)[0].count("<img") == 52
    assert page.stat().st_size < 2_000_000


def test_same_run_same_page(finished):
    first = finished.read_bytes()
    assert write_run_report(str(finished.parent)).read_bytes() == first
    assert not list(finished.parent.glob(".*.part"))


def test_no_run_no_page(tmp_path):
    with pytest.raises(RunFolderError):
        write_run_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_accuracy_on_a_device_is_a_headline(run_dir):
    run = run_dir
    summary = json.loads((run / "summary.json").read_text())
    summary |= {
        "device": "rram_typical",
        "device_accuracy": 0.912,
        "device_accuracy_spread": 0.013,
        "device_chips": 5,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    page = write_run_report(run).read_text()
    assert "On rram_typical" in page
    assert "91.2" in page
    assert "spread of 5 chips 1.3 points" in page
