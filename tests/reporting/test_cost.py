import pandas as pd
import pytest
from torch import nn

from crosspruner.hardware import UnitCosts, plan_model
from crosspruner.reporting.cost import (
    cost_by_event,
    cost_rows,
    cost_summary,
    cost_table,
    energy_bars,
    significant,
    write_cost_table,
)
from crosspruner.reporting.page import write_run_report

UNITS = UnitCosts("test", array_read_pj=0.01, adc_pj=2.0, read_ns=10.0, cell_um2=0.1)


def plan():
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10))
    return plan_model(module, (4, 8, 8), "32x32", exclude=())


def test_the_table_holds_every_event_of_both_versions():
    table = cost_table(plan(), UNITS)
    assert set(table["version"]) == {"dense", "pruned"}
    assert (table["cost"] == table["count"] * table["unit_cost"]).all()
    energy = table[(table["version"] == "dense") & (table["quantity"] == "energy")]["cost"].sum()
    assert energy * 1e-6 == pytest.approx(cost_summary(plan(), UNITS)["energy_uj_dense"])


def test_sums_by_event_keep_the_unit_cost_where_layers_share_it():
    table = cost_table(plan(), UnitCosts(adc_pj=2.0, adc_ns=1.0, columns_per_adc=32))
    adc = cost_by_event(table, "energy").set_index("event").loc["adc"]
    assert adc["unit_cost"] == 2.0
    assert adc["cost"] == adc["count"] * 2
    read = cost_by_event(table, "latency").set_index("event").loc["read"]
    assert pd.isna(read["unit_cost"])  # layers convert other numbers of columns
    assert "by layer" in {row["unit_cost"] for row in cost_rows(table)}


def test_the_page_shows_costs(run_dir):
    run = run_dir
    write_cost_table(plan(), UNITS, run / "cost.csv")
    page = write_run_report(run).read_text()
    assert "What an image costs" in page
    assert "columns converted" in page
    assert "Energy per image, dense and pruned" in page
    assert 'href="cost.csv"' in page


def test_a_page_without_costs_has_no_such_part(run_dir):
    assert "What an image costs" not in write_run_report(run_dir).read_text()


def test_a_broken_cost_table_is_named(run_dir):
    run = run_dir
    (run / "cost.csv").write_text("a,b\n1,2\n")
    assert "cost.csv cannot be read" in write_run_report(run).read_text()


@pytest.mark.parametrize("share", [0.3, 0.55, 0.9])
def test_a_cost_table_cut_short_shows_no_cost(run_dir, share):
    """Half of the rows would pass for the costs of a smaller network."""
    write_cost_table(plan(), UNITS, run_dir / "cost.csv")
    lines = (run_dir / "cost.csv").read_text().splitlines(keepends=True)
    (run_dir / "cost.csv").write_text("".join(lines[: round(share * len(lines))]))
    page = write_run_report(run_dir).read_text()
    assert "cost.csv cannot be read: rows are missing" in page
    assert "What an image costs" not in page


def test_a_cost_table_torn_in_its_last_line_shows_no_cost(run_dir):
    write_cost_table(plan(), UNITS, run_dir / "cost.csv")
    text = (run_dir / "cost.csv").read_text()
    (run_dir / "cost.csv").write_text(text[: text.rindex(",")])
    assert "cost.csv cannot be read: rows are missing" in write_run_report(run_dir).read_text()


def test_costs_of_a_network_that_is_one_layer_are_shown(run_dir):
    alone = plan_model(nn.Linear(5, 7), (5,), "4x4", exclude=())
    write_cost_table(alone, UNITS, run_dir / "cost.csv")
    assert "What an image costs" in write_run_report(run_dir).read_text()


def test_no_bars_where_nothing_costs_anything():
    assert energy_bars(cost_table(plan(), UnitCosts())) is None


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (0.0018312, "0.00183"), (0.0, "0"), (12.345, "12.3")]
)
def test_significant_digits(value, text):
    assert significant(value) == text
