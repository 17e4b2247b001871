"""The dashboard is built and checked without a network; saving it is checked up to the account."""

import json

import pytest
from click.testing import CliRunner

from crosspruner.errors import ConfigError
from crosspruner.reporting.dashboard import (
    _interface,
    build_workspace,
    describe,
    save_workspace,
)
from crosspruner.reporting.sweep_table import RESULTS, SETTINGS

wr, _ = _interface()


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for key in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def workspace():
    return build_workspace("team", "project")


def test_sections_and_panels(workspace):
    kinds = {s.name: [type(panel) for panel in s.panels] for s in workspace.sections}
    assert list(kinds) == ["Frontier", "Ratios", "Training", "Masks", "Layers", "Comparison"]
    assert kinds["Frontier"] == [
        wr.ScatterPlot,
        wr.ScatterPlot,
        wr.ParallelCoordinatesPlot,
        wr.ParameterImportancePlot,
    ]
    assert kinds["Layers"] == [wr.WeavePanelSummaryTable, wr.MediaBrowser]
    assert kinds["Comparison"] == [wr.RunComparer]


def test_panels_read_what_runs_log(workspace):
    logged = {"train/loss", "train/acc", "val/loss", "val/acc", "crossbars/compute"}
    logged |= {"prune/phase", "prune/ratio", "prune/relax", "prune/mask_churn"}
    panels = [panel for section in workspace.sections for panel in section.panels]
    lines = [panel for panel in panels if isinstance(panel, wr.LinePlot)]
    assert {getattr(y, "name", y) for panel in lines for y in panel.y} == logged
    scatters = [panel for panel in panels if isinstance(panel, wr.ScatterPlot)]
    assert {panel.x.name for panel in scatters} == {"compute_saved", "total_saved"}
    assert {panel.y.name for panel in scatters} == {"accuracy"} <= set(RESULTS)
    (parallel,) = (panel for panel in panels if isinstance(panel, wr.ParallelCoordinatesPlot))
    configs = [c.metric.name for c in parallel.columns if isinstance(c.metric, wr.Config)]
    assert configs == [
        f"labels.{k}" for k in ("model", "crossbar", "grain", "solver", "ratio", "seed")
    ]
    assert {name.removeprefix("labels.") for name in configs} <= set(SETTINGS)


def test_the_request_that_would_be_sent_is_well_formed(workspace):
    spec = workspace._to_model().spec.model_dump(by_alias=True, mode="json")
    text = json.dumps(spec)
    assert "labels.value.crossbar" in text  # nested keys, as config values are stored there
    assert text.count('"viewType"') > 10


def test_describe_names_every_section_and_panel(workspace):
    text = describe(workspace)
    assert text.startswith("Crossbar pruning: team/project\n  Frontier\n")
    assert len(text.splitlines()) == 1 + 6 + sum(len(s.panels) for s in workspace.sections)


def test_saving_without_an_account(workspace):
    with pytest.raises(ConfigError, match="needs an account"):
        save_workspace(workspace)


def test_command_line(load_script):
    main = load_script("dashboard").main
    result = CliRunner().invoke(main, ["--dry-run", "--project", "mine"])
    assert result.exit_code == 0
    assert result.output.startswith("Crossbar pruning: ENTITY/mine")
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 2
    assert "error: saving the dashboard needs an account" in result.output
