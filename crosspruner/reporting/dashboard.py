"""The project's saved workspace in Weights & Biases: one view that answers the usual questions.

The only file that imports wandb-workspaces (optional extra `dashboard`; its interface is a public
preview). Building the workspace needs neither a network nor an account; saving it does.
"""

import warnings
from typing import TYPE_CHECKING, Any

from crosspruner.errors import ConfigError
from crosspruner.reporting.wandb_account import has_account

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

VIEW = "Crossbar pruning"

_STEP = "trainer/global_step"


def build_workspace(entity: str, project: str = "crosspruner") -> "Workspace":
    """Build the workspace, without saving it.

    Sections: the frontier of accuracy against crossbars (with parallel coordinates over the
    settings), ratios, training, masks, layers, and a comparison of runs. The panels read the
    metrics, the `labels` and the summary fields that `tracked` and `log_results` write.

    Args:
        entity: Team or user.
        project: Project that the runs were sent to.

    Raises:
        ConfigError: wandb-workspaces is not installed.
    """
    wr, ws = _interface()

    def label(name: str) -> Any:
        return wr.Config(f"labels.{name}")

    def lines(title: str, *metrics: str, by: str | None = None) -> Any:
        grouped = {}
        if by is not None:
            grouped = {
                "groupby": label(by),
                "groupby_aggfunc": "mean",
                "groupby_rangefunc": "stddev",
            }
        return wr.LinePlot(title=title, x=_STEP, y=list(metrics), **grouped)

    def frontier(title: str, saved: str) -> Any:
        return wr.ScatterPlot(
            title=title, x=wr.SummaryMetric(saved), y=wr.SummaryMetric("accuracy")
        )

    columns = [
        *(
            (label(name), name)
            for name in ("model", "crossbar", "grain", "solver", "ratio", "seed")
        ),
        (wr.SummaryMetric("compute_saved"), "compute crossbars saved"),
        (wr.SummaryMetric("accuracy"), "accuracy"),
    ]
    parallel = wr.ParallelCoordinatesPlot(
        title="Settings and what they lead to",
        columns=[
            wr.ParallelCoordinatesPlotColumn(metric=metric, display_name=name)
            for metric, name in columns
        ],
    )
    panels: dict[str, list[Any]] = {
        "Frontier": [
            frontier("Accuracy against compute crossbars saved", "compute_saved"),
            frontier("Accuracy against all crossbars saved", "total_saved"),
            parallel,
            wr.ParameterImportancePlot(with_respect_to="accuracy"),
        ],
        "Ratios": [
            lines("Fraction of compute crossbars removed", "prune/ratio"),
            lines("Compute crossbars left", "crossbars/compute"),
            lines("Fraction removed, by grain", "prune/ratio", by="grain"),
        ],
        "Training": [
            lines("Validation accuracy", "val/acc"),
            lines("Validation accuracy, by grain", "val/acc", by="grain"),
            lines("Training accuracy", "train/acc"),
            lines("Loss", "train/loss", "val/loss"),
        ],
        "Masks": [
            lines("Share of groups that changed", "prune/mask_churn"),
            lines("Relaxation", "prune/relax"),
            lines("Phase: 0 dense, 1 prune, 2 fine-tune", "prune/phase"),
        ],
        "Layers": [
            wr.WeavePanelSummaryTable(table_name="layers"),
            wr.MediaBrowser(title="What survives", media_keys=["survival"], num_columns=4),
        ],
        "Comparison": [wr.RunComparer(diff_only="split")],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=VIEW,
        sections=[
            ws.Section(
                name=name,
                panels=members,
                is_open=name in ("Frontier", "Training"),
                layout_settings=ws.SectionLayoutSettings(columns=2, rows=2),
            )
            for name, members in panels.items()
        ],
        settings=ws.WorkspaceSettings(x_axis=_STEP, max_runs=50),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Config(f"labels.{name}") for name in ("crossbar", "grain", "ratio")]
        ),
    )


def _interface() -> tuple[Any, Any]:
    """The two modules of wandb-workspaces: panels, and the workspace around them."""
    with warnings.catch_warnings():
        # It still defines pydantic 1 validators, and says so whenever it is imported.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            import wandb_workspaces.reports.v2 as wr
            import wandb_workspaces.workspaces as ws
        except ImportError as error:
            raise ConfigError(
                "the dashboard needs wandb-workspaces: pip install 'crosspruner[dashboard]'"
            ) from error
    return wr, ws


def describe(workspace: "Workspace") -> str:
    """The workspace in plain text: sections, panels and what each of them shows."""
    lines = [f"{workspace.name}: {workspace.entity}/{workspace.project}"]
    for section in workspace.sections:
        lines.append(f"  {section.name}")
        for panel in section.panels:
            kind = type(panel).__name__
            title = getattr(panel, "title", None) or getattr(panel, "table_name", None) or ""
            lines.append(f"    {kind:<24} {title}".rstrip())
    return "\n".join(lines)


def default_entity() -> str:
    """Entity of the account on this machine; asks the server.

    Raises:
        ConfigError: No account is configured on this machine.
    """
    _require_account()
    import wandb

    return str(wandb.Api().default_entity)


def save_workspace(workspace: "Workspace") -> str:
    """Save the workspace as a new view of its project.

    Returns:
        Its address.

    Raises:
        ConfigError: No account is configured on this machine.
    """
    _require_account()
    return str(workspace.save_as_new_view().url)


def _require_account() -> None:
    if not has_account():
        raise ConfigError(
            "saving the dashboard needs an account, and none is configured on this machine: type "
            "`wandb login` or set WANDB_API_KEY; --dry-run prints the dashboard without one"
        )
