"""What a run shows: tables, figures, pages, tracking. Reads run folders only.

run folder -> run_folder -> figures, survival -> page   (one run: report.html)
                                              -> sweep  (many runs: report.html, summary.csv)
"""

from crosspruner.reporting.console import print_crossbars as print_crossbars
from crosspruner.reporting.layers import layer_table as layer_table
from crosspruner.reporting.layers import write_layer_table as write_layer_table
from crosspruner.reporting.page import write_run_report as write_run_report
from crosspruner.reporting.run_folder import RunFolder as RunFolder
from crosspruner.reporting.run_folder import find_runs as find_runs
from crosspruner.reporting.sweep import write_sweep_report as write_sweep_report
from crosspruner.reporting.sweep_table import write_sweep_summary as write_sweep_summary
