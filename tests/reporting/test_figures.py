import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from crosspruner.reporting.figures import (
    MAX_POINTS,
    TRAINING_FIGURES,
    _series,
    crossbar_bars,
    phase_spans,
    shorten,
    steps_per_epoch,
    training_curves,
)
from crosspruner.reporting.run_files import LAYER_COLUMNS
from crosspruner.reporting.run_folder import RunFolder
from crosspruner.reporting.svg import PALETTE, inline_svg, save_figure


def test_phase_spans_by_hand():
    metrics = pd.DataFrame(
        {"step": [0, 5, 9, 10, 15, 19, 24], "prune/phase": [0, 0, np.nan, 1, 1, 2, 2]}
    )
    assert phase_spans(metrics) == [("dense", 0, 10), ("prune", 10, 19), ("fine-tune", 19, 25)]
    assert phase_spans(metrics.drop(columns="prune/phase")) == []
    assert phase_spans(pd.DataFrame()) == []


def test_steps_per_epoch_by_hand():
    metrics = pd.DataFrame({"step": [3, 7, 9, 19], "epoch": [0, 0, 0, 1], "val/acc": [None] * 4})
    metrics.loc[[2, 3], "val/acc"] = 0.5
    assert steps_per_epoch(metrics.astype(float)) == 10
    assert steps_per_epoch(pd.DataFrame({"step": [0, 1]})) == 1


def test_long_series_are_averaged_not_cut():
    steps = np.arange(10 * MAX_POINTS)
    x, y = _series(pd.DataFrame({"step": steps, "loss": steps % 10}), "loss")
    assert len(x) == MAX_POINTS
    assert np.allclose(y, 4.5)
    assert np.isclose(x.mean(), steps.mean())


def test_bars_name_every_layer_and_count(run_dir):
    layers = RunFolder(run_dir).layers
    svg = inline_svg(crossbar_bars(layers), "bars", "Bars", "words")
    for row in layers.itertuples():
        assert f">{row.layer}<" in svg
        assert f"{row.compute_dense:,}" in svg
    assert crossbar_bars(pd.DataFrame(columns=LAYER_COLUMNS)) is None


@pytest.mark.parametrize("spec", TRAINING_FIGURES, ids=lambda spec: spec.name)
def test_curves_show_each_phase(run_dir, spec):
    figure = training_curves(RunFolder(run_dir).metrics, spec)
    written = {text.get_text() for text in figure.axes[0].texts}
    assert written == {"dense", "prune", "fine-tune"}
    assert len(figure.axes[0].get_lines()) == len(spec.lines)
    assert figure.axes[0].get_xlim()[1] == pytest.approx(7)  # 2 + 3 + 2 epochs
    assert training_curves(pd.DataFrame(), spec) is None


def test_the_ratio_asked_for_is_a_level_line(run_dir):
    metrics = RunFolder(run_dir).metrics
    ratio = next(spec for spec in TRAINING_FIGURES if spec.name == "ratio")
    lines = training_curves(metrics, ratio, 0.5).axes[0].get_lines()
    assert list(lines[-1].get_ydata()) == [0.5, 0.5]
    assert lines[0].get_ydata()[-1] == pytest.approx(0.5, abs=0.01)
    loss = next(spec for spec in TRAINING_FIGURES if spec.name == "loss")
    assert len(training_curves(metrics, loss, 0.5).axes[0].get_lines()) == 2


def test_nothing_pruned_yet_gives_no_ratio_curve(make_run, tmp_path):
    metrics = RunFolder(make_run(tmp_path / "run", status="unfinished")).metrics
    shown = [spec.name for spec in TRAINING_FIGURES if training_curves(metrics, spec) is not None]
    assert shown == ["accuracy", "loss"]


def test_inline_svg_is_accessible_and_follows_the_theme(run_dir):
    figure = crossbar_bars(RunFolder(run_dir).layers)
    svg = inline_svg(figure, "one", "Title & more", "What <it> shows")
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "one-title one-desc"
    assert [child.text for child in root[:2]] == ["Title & more", "What <it> shows"]
    assert "width" not in root.attrib
    for name, colour in PALETTE.items():
        assert svg.count(colour) == svg.count(f"var(--{name}, {colour})")
    assert "var(--keep," in svg
    ids = re.findall(r' id="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("one-") for name in ids)
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
    assert {a or b for a, b in used} <= set(ids)
    assert (
        inline_svg(
            crossbar_bars(RunFolder(run_dir).layers), "one", "Title & more", "What <it> shows"
        )
        == svg
    )


def test_save_figure_writes_plain_files(run_dir, tmp_path):
    figure = crossbar_bars(RunFolder(run_dir).layers)
    svg, png = save_figure(figure, tmp_path / "out/bars.v1")
    assert svg.name == "bars.v1.svg"
    assert "var(" not in svg.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")


def test_names_in_any_script_draw_without_a_warning():
    layers = pd.DataFrame({"layer": ["层.畳み込み"], "compute_dense": [4], "compute": [2]})
    assert "层.畳み込み" in inline_svg(crossbar_bars(layers), "p", "t", "d")


def test_shorten_keeps_the_end():
    assert shorten("layer3.5.conv2") == "layer3.5.conv2"
    short = shorten("stages.2.blocks.17.mlp.fc1.very.long")
    assert len(short) == 22
    assert short.endswith(".fc1.very.long")
