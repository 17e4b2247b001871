import pandas as pd
import pytest

from crosspruner.reporting.robustness import robustness_figure, summarise
from crosspruner.reporting.svg import save_figure


def chips():
    rows = [
        {"network": network, "effect": effect, "value": value, "seed": seed,
         "accuracy": 0.8 - value / 100 + seed / 10, "images": 50}
        for network in ("dense", "pruned 50%")
        for effect, values in (("bits", (8, 4)), ("sigma", (0.0, 0.1)), ("adc", (8, 6)))
        for value in values
        for seed in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_summary_by_hand():
    found = summarise(chips())
    assert len(found) == 2 * 3 * 2
    first = found.iloc[0]
    assert (first["network"], first["effect"], first["value"]) == ("dense", "bits", 8)
    assert first["accuracy"] == pytest.approx(0.77)
    assert first["spread"] == pytest.approx(0.05)
    assert first["worst"] == pytest.approx(0.72)
    assert (first["chips"], first["images"]) == (2, 50)


def test_a_panel_per_effect_a_line_per_network_and_the_papers_knees(tmp_path):
    figure = robustness_figure(chips())
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in shown] == [
        "bits of a weight",
        "sigma of w exp(theta)",
        "bits of the ADC",
    ]
    assert [len(axes.lines) for axes in shown] == [3, 3, 2]  # the first two have the paper's knee
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "pruned 50%"]
    assert all(file.stat().st_size > 0 for file in save_figure(figure, tmp_path / "robustness"))


def test_one_network_alone():
    figure = robustness_figure(chips(), ["dense"])
    assert [len(axes.lines) for axes in figure.axes if axes.get_visible()] == [2, 2, 1]
