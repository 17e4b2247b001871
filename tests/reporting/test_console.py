import io

import pandas as pd
from rich.console import Console

from crosspruner.reporting.console import budget_line, print_crossbars
from crosspruner.reporting.run_folder import RunFolder


def test_table_sums_and_marks_what_was_left_alone(run_dir):
    layers = RunFolder(run_dir).layers
    layers.loc[0, "layer"] = "[0].[bold]"
    out = io.StringIO()
    print_crossbars(layers, 0.5, Console(file=out, width=120))
    text = out.getvalue()
    assert "[0].[bold]" in text
    assert text.count("kept whole") == 2
    assert f"{layers['compute'].sum():,}" in text
    assert "50.0% asked for" in text.splitlines()[-1]


def test_budget_line_by_hand():
    layers = pd.DataFrame({"compute_dense": [100, 60], "compute": [40, 40]})
    line = budget_line(layers, 0.55)
    assert line == "160 compute crossbars -> 80: 50.0% saved, 55.0% asked for"
