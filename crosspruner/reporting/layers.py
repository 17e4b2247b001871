"""The layer table of a plan: what `crossbars.csv` holds, a row per layer."""

from pathlib import Path

import pandas as pd

from crosspruner.hardware.plan import Plan


def layer_table(plan: Plan) -> pd.DataFrame:
    """`plan.rows()` as a table; a pruned plan shows its counts before and after."""
    return pd.DataFrame(plan.rows())


def write_layer_table(plan: Plan, path: Path) -> pd.DataFrame:
    """Write the layer table as CSV (`crossbars.csv` of a run folder) and return it."""
    table = layer_table(plan)
    table.to_csv(path, index=False)
    return table
