import json
import re

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from crosspruner.errors import RunFolderError
from crosspruner.reporting import write_sweep_report, write_sweep_summary
from crosspruner.reporting.config_diff import config_table
from crosspruner.reporting.frontier import MAX_LINES, frontiers, unbeaten
from crosspruner.reporting.layer_heat import kept_by_layer, layer_heat, survival_share
from crosspruner.reporting.run_folder import RunFolder, find_runs
from crosspruner.reporting.run_rows import run_columns
from crosspruner.reporting.series import Series, find_series
from crosspruner.reporting.sweep_table import RESULTS, SETTINGS, parse_overrides, sweep_table


@pytest.fixture(scope="module")
def sweep(make_run, tmp_path_factory):
    """2 grains x 2 ratios x 2 seeds; one job failed, one is unfinished. Run pages are stubs."""
    root = tmp_path_factory.mktemp("sweeps") / "stamp"
    number = 0
    for grain in ("crossbar", "column"):
        for ratio in (0.3, 0.7):
            for seed in (0, 1):
                status = {3: "failed", 6: "unfinished"}.get(number, "done")
                make_run(
                    root / str(number), grain=grain, ratio=ratio, seed=seed, status=status, steps=5
                )
                (root / str(number) / "report.html").write_text("<title>a run</title>")
                number += 1
    return root


@pytest.fixture(scope="module")
def runs(sweep):
    return find_runs(sweep)


@pytest.fixture(scope="module")
def table(sweep, runs):
    return sweep_table(runs, sweep)


def test_table_has_a_row_per_run(table):
    assert table["run"].tolist() == [str(i) for i in range(8)]
    assert table["status"].value_counts().to_dict() == {"done": 6, "failed": 1, "unfinished": 1}
    assert list(table.columns) == ["run", "status", "message", "overrides", *SETTINGS, *RESULTS]
    failed = table.loc[3]
    assert failed["message"] == "DataError: data.dir=/nope is not a folder."
    assert (failed["grain"], failed["ratio"], failed["seed"]) == ("crossbar", 0.7, 1)
    assert np.isnan(failed["accuracy"])
    assert table["overrides"][0] == "model=vgg8 crossbar=256x256 grain=crossbar ratio=0.3 seed=0"


def test_summary_csv_reads_back(sweep, table):
    path = write_sweep_summary(sweep)
    assert path == sweep / "summary.csv"
    again = pd.read_csv(path)
    assert again["status"].tolist() == table["status"].tolist()
    done = json.loads((sweep / "0/summary.json").read_text())
    for key in RESULTS:
        assert again[key][0] == pytest.approx(done[key])
    assert write_sweep_summary(str(sweep)).read_text() == path.read_text()


def test_summary_keeps_fields_it_does_not_know(make_run, tmp_path):
    run = make_run(tmp_path / "s/0")
    summary = json.loads((run / "summary.json").read_text()) | {"energy": 1.5}
    (run / "summary.json").write_text(json.dumps(summary))
    assert pd.read_csv(write_sweep_summary(tmp_path / "s"))["energy"].tolist() == [1.5]


def test_parse_overrides():
    typed = ["+a.b=1", "grain=column", "~x", "++list=[1,2]", "eq=a=b", "hydra.run.dir=/x"]
    expected = {"a.b": "1", "grain": "column", "x": "", "list": "[1,2]", "eq": "a=b"}
    assert parse_overrides(typed) == expected


def test_series_are_grouped_by_seed_by_hand(table, runs):
    series = find_series(table, runs)
    assert [s.label for s in series] == ["256x256, column", "256x256, crossbar"]
    column, crossbar = series
    assert column.family == "vgg8 on digits"
    assert column.groups["members"].tolist() == [[4, 5], [7]]
    assert crossbar.groups["members"].tolist() == [[0, 1], [2]]
    assert crossbar.groups["seeds"].tolist() == [2, 1]
    two = table.loc[[0, 1], "accuracy"]
    assert crossbar.groups["accuracy"][0] == pytest.approx(two.mean())
    assert crossbar.groups["accuracy_std"][0] == pytest.approx(abs(two[0] - two[1]) / 2**0.5)
    assert crossbar.groups["accuracy_std"][1] == 0
    assert crossbar.line.equals(crossbar.groups)


def test_an_override_that_is_compared_makes_lines_and_one_searched_over_does_not(
    make_run, tmp_path
):
    for number in range(8):
        run = make_run(tmp_path / str(number), seed=0, steps=2)
        typed = [f"optimizer.lr={number % 2}", f"budget.layers.a={number / 10}"]
        (run / ".hydra/overrides.yaml").write_text(json.dumps(["model=vgg8", *typed]))
        summary = json.loads((run / "summary.json").read_text())
        summary |= {"compute_saved": number / 10, "accuracy": [0.9, 0.8, 0.7, 0.85][number // 2]}
        (run / "summary.json").write_text(json.dumps(summary))
    found = find_runs(tmp_path)
    series = find_series(sweep_table(found, tmp_path), found)
    assert [s.method for s in series] == ["optimizer.lr=0", "optimizer.lr=1"]
    # eight trials at one ratio: only those that no other beats are joined by the line
    assert series[0].groups["accuracy"].tolist() == [0.9, 0.8, 0.7, 0.85]
    assert series[0].line["accuracy"].tolist() == [0.9, 0.85]


def test_a_search_over_layers_is_one_line_through_its_unbeaten_runs(make_run, tmp_path):
    """Each trial has a ratio of its own, and a layer may have few values: neither makes a line."""
    for number in range(4):
        run = make_run(tmp_path / str(number), ratio=0.1 + number / 10, steps=2)
        typed = [f"+budget.layer_ratios.a={number % 2}", f"+budget.layer_ratios.b={number / 3:.6g}"]
        (run / ".hydra/overrides.yaml").write_text(json.dumps(["budget=per_layer", *typed]))
        summary = json.loads((run / "summary.json").read_text())
        summary |= {"budget": "per_layer", "compute_saved": number / 10}
        summary |= {"accuracy": [0.9, 0.7, 0.85, 0.8][number]}
        (run / "summary.json").write_text(json.dumps(summary))
    found = find_runs(tmp_path)
    table = sweep_table(found, tmp_path)
    (one,) = find_series(table, found)
    assert one.line["accuracy"].tolist() == [0.9, 0.85, 0.8]
    of_layers = [column for column in run_columns(table, found) if column.name in "ab"]
    assert [(c.name, c.shown, c.choices) for c in of_layers] == [
        ("a", ["0", "1", "0", "1"], []),
        ("b", ["0", "0.333", "0.667", "1"], []),
    ]


def test_settings_that_change_together_are_named_once(make_run, tmp_path):
    for number, (grain, schedule) in enumerate(
        [("column", "short"), ("crossbar", "long"), ("crossbar", "long")]
    ):
        run = make_run(tmp_path / str(number), grain=grain, seed=number, steps=2)
        typed = [f"grain={grain}", f"schedule={schedule}", f"paths.log_dir=/{number}"]
        (run / ".hydra/overrides.yaml").write_text(json.dumps(typed))
    found = find_runs(tmp_path)
    series = find_series(sweep_table(found, tmp_path), found)
    assert [s.method for s in series] == ["column", "crossbar"]
    assert series[1].groups["seeds"].tolist() == [2]


def test_no_finished_run_no_series(make_run, tmp_path):
    make_run(tmp_path / "0", status="failed")
    found = find_runs(tmp_path)
    assert find_series(sweep_table(found, tmp_path), found) == []


def test_frontier_marks_every_run_and_links_to_it(table, runs):
    (front,) = frontiers(find_series(table, runs), lambda i: f"{i}/report.html")
    axes = front.figure.axes[0]
    urls = [url for marks in axes.collections for url in marks.get_urls() if url]
    assert sorted(urls) == [f"{i}/report.html" for i in (0, 1, 2, 4, 5, 7)]
    assert [t.get_text() for t in front.figure.legends[0].get_texts()] == ["column", "crossbar"]
    assert front.data["seeds"].tolist() == [2, 1, 2, 1]


def test_many_lines_are_split_by_crossbar_on_the_same_axes(table, runs):
    (one, _) = find_series(table, runs)
    many = [
        Series(one.family, crossbar, f"method {i}", one.runs, one.groups)
        for crossbar in ("64x64", "128x128")
        for i in range(MAX_LINES)
    ]
    plots = list(frontiers(many, str))
    assert [p.title for p in plots] == ["vgg8 on digits, 64x64", "vgg8 on digits, 128x128"]
    first, second = (p.figure.axes[0] for p in plots)
    assert first.get_ylim() == second.get_ylim()
    colours = [
        [line.get_color() for line in axes.get_lines() if line.get_label().startswith("method")]
        for axes in (first, second)
    ]
    assert colours[0] == colours[1]
    assert len(set(colours[0])) == MAX_LINES


def test_unbeaten_by_hand(table):
    runs = table.iloc[:5].assign(
        compute_crossbars=[10, 20, 20, 30, 40], accuracy=[0.8, 0.9, 0.85, 0.9, 0.95]
    )
    one = Series("f", "c", "m", runs, pd.DataFrame())
    assert unbeaten([one]).index.tolist() == [0, 1, 4]


def test_unbeaten_runs_are_listed_by_crossbar(make_run, tmp_path):
    """As many crossbars of another size are another chip: a run of few large ones beats no one."""
    for number, crossbar in enumerate(("64x64", "256x256")):
        path = make_run(tmp_path / str(number), crossbar=crossbar, steps=2)
        summary = json.loads((path / "summary.json").read_text())
        summary |= {"compute_crossbars": 100 - 90 * number, "accuracy": 0.9 + 0.05 * number}
        (path / "summary.json").write_text(json.dumps(summary))
        (path / "report.html").write_text("<title>a run</title>")
    text = write_sweep_report(tmp_path).read_text()
    for number, crossbar in enumerate(("64x64", "256x256")):
        _, _, card = text.partition(f"<h3>Unbeaten runs, vgg8 on digits, {crossbar}</h3>")
        assert f"No other run on {crossbar} crossbars" in card
        rows = re.findall(r'href="(\d)/report', card.partition("</table>")[0])
        assert rows == [str(number)]


def test_against_dense_sorts_as_it_reads(table, runs):
    (column,) = [c for c in run_columns(table, runs) if c.name == "Against dense"]
    values = [float(value) for value in column.values if value]
    shown = [float(text.split()[0].replace("\N{MINUS SIGN}", "-")) for text in column.shown if text]
    assert [round(100 * value, 1) for value in values] == shown
    assert values[0] == pytest.approx(-table["accuracy_drop"][0])


def test_layers_of_a_series_by_hand(table, runs):
    _, crossbar = find_series(table, runs)
    kept = kept_by_layer(crossbar, runs)
    assert kept.shape == (8, 2)
    assert kept.index[0] == "features.0"
    assert kept.iloc[0].tolist() == [1, 1]
    assert kept.iloc[1, 1] == pytest.approx(2 / 8)  # 8 input groups, 30 % of them rounded
    assert layer_heat(kept).axes[0].get_images()[0].get_array().shape == (8, 2, 4)
    share = survival_share(crossbar, runs)
    by_hand = sum(RunFolder(runs[i].path).masks["features.3"].astype(float) for i in (0, 1, 2)) / 3
    assert np.allclose(share["features.3"], by_hand)


def test_runs_without_layers_have_no_heat(make_run, tmp_path):
    run = make_run(tmp_path / "0")
    (run / "crossbars.csv").unlink()
    (run / "pruned/masks.safetensors").unlink()
    found = find_runs(tmp_path)
    (series,) = find_series(sweep_table(found, tmp_path), found)
    assert kept_by_layer(series, found).empty
    assert survival_share(series, found) == {}


def test_config_table_by_hand(make_run, tmp_path):
    base = {"paths": {"out": "x"}, "list": [1, 2]}
    make_run(tmp_path / "0", config=base)
    make_run(tmp_path / "1", config={**base, "paths": {"out": "y"}, "extra": None}, ratio=0.7)
    make_run(tmp_path / "2", config={**base, "list": [2]})
    differences = config_table(find_runs(tmp_path))
    assert differences["keys"] == ["ratio", "list", "extra"]
    assert differences["values"] == [["0.5", "0.7"], ["[1, 2]", "[2]"], ["null"]]
    assert differences["runs"] == [[0, 0, -1], [1, 0, 0], [0, 1, -1]]
    assert differences["same"] == 16


def test_page_has_every_run_and_its_figures_beside_it(sweep):
    page = write_sweep_report(sweep)
    assert page == sweep / "report.html"
    text = page.read_text()
    links = re.findall(r'<th scope="row" data-value="\d"><a href="(\d/report\.html)">', text)
    assert links == [f"{i}/report.html" for i in range(8)]
    assert "6 done" in text
    assert "1 failed" in text
    assert "DataError: data.dir=/nope is not a folder." in text
    assert (sweep / "3/report.html").read_text() == "<title>a run</title>"  # not written anew
    names = {path.name for path in (sweep / "figures").iterdir()}
    stems = {"frontier-vgg8-on-digits"}
    stems |= {f"layers-vgg8-on-digits-256x256-{grain}" for grain in ("crossbar", "column")}
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("csv", "svg", "png")}
    for link in re.findall(r'href="(figures/[^"]+)"', text):
        assert (sweep / link).is_file()
    numbers = pd.read_csv(sweep / "figures/frontier-vgg8-on-digits.csv")
    assert numbers["seeds"].sum() == 6


def test_a_finished_sweep_is_no_run_though_it_has_a_done_of_its_own(make_run, tmp_path):
    make_run(tmp_path / "stamp/0", steps=2)
    (tmp_path / "stamp/multirun.yaml").write_text("hydra: {}")  # hydra's own
    (tmp_path / "stamp/DONE").touch()
    assert [run.path.name for run in find_runs(tmp_path)] == ["0"]
    assert "1 of 1 runs" in write_sweep_report(tmp_path / "stamp").read_text()


def test_one_run_and_one_job_and_only_failures(make_run, tmp_path):
    alone = make_run(tmp_path / "alone")
    assert '<h2 id="training">' in write_sweep_report(alone).read_text()
    make_run(tmp_path / "single/0", steps=2)
    text = write_sweep_report(tmp_path / "single").read_text()
    assert "1 of 1 runs" in text
    assert (tmp_path / "single/0/report.html").is_file()  # it had no page
    make_run(tmp_path / "failed/0", status="failed", message="<script>alert(1)</script>")
    text = write_sweep_report(tmp_path / "failed").read_text()
    assert "No run of this sweep is done" in text
    assert "<script>alert" not in text


def test_command_line(make_run, tmp_path, load_script):
    main = load_script("report").main
    make_run(tmp_path / "sweep/0", status="failed", steps=2)
    result = CliRunner().invoke(main, [str(tmp_path / "sweep")])
    assert result.exit_code == 0
    assert result.output.strip() == str(tmp_path / "sweep/report.html")
    result = CliRunner().invoke(main, [str(tmp_path / "nope")])
    assert result.exit_code == 2
    assert result.output.strip().endswith("give the folder of a run or of a sweep.")
    assert "Traceback" not in result.output


def test_empty_folder(tmp_path):
    with pytest.raises(RunFolderError, match="No run was found"):
        write_sweep_report(tmp_path)
