import json
from pathlib import Path

import pandas as pd
import pytest

from crosspruner.errors import ConfigError
from crosspruner.hardware import Plan


@pytest.fixture(scope="module")
def map_report(load_script):
    return load_script("map_report")


def test_one_combination_prints_the_plan(map_report, capsys):
    map_report.main(["model=vgg8", "crossbar=128x128", "mapping=folded"])
    printed = capsys.readouterr().out
    assert "128x128 crossbars, folded mapping" in printed
    assert "features.3" in printed


def test_several_stand_side_by_side_and_are_written(map_report, capsys, tmp_path):
    map_report.main(
        ["model=vgg8", "crossbar=64x64,128x128", "mapping=folded,semifolded", f"out={tmp_path}"]
    )
    printed = capsys.readouterr().out
    totals = pd.read_csv(tmp_path / "totals.csv", index_col="plan")
    labels = ["64x64 folded", "64x64 semifolded", "128x128 folded", "128x128 semifolded"]
    assert totals.index.tolist() == labels
    for label in labels:
        plan = Plan.load(tmp_path / f"{label.replace(' ', '_')}.json")
        assert totals.loc[label, "compute_crossbars"] == plan.compute_crossbars
        assert label in printed
        assert f"{plan.compute_crossbars:,}" in printed
    layers = pd.read_csv(tmp_path / "crossbars.csv")
    sums = layers.groupby("plan")["compute"].sum()
    assert sums.to_dict() == totals["compute_crossbars"].to_dict()
    assert (tmp_path / "crossbars.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("names", [["vgg8", "vgg16"], ["vgg16", "vgg8"]])
def test_networks_of_other_layers_stand_side_by_side(map_report, capsys, tmp_path, names):
    overrides = [f"model={','.join(names)}", "crossbar=64x64", "mapping=folded"]
    map_report.main([*overrides, f"out={tmp_path}"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    plans = [Plan.load(tmp_path / f"{name}.json") for name in names]
    for name in {layer.name for plan in plans for layer in plan.layers}:
        counts = [f"{e.compute_crossbars:,}" for p in plans for e in p.layers if e.name == name]
        assert lines[name].split()[1:] == counts
    start = lines["layer"].index(names[1]) - 1
    alone = next(e.name for e in plans[0].layers if e.name not in {x.name for x in plans[1].layers})
    assert not lines[alone][start:].strip(), "blank where the second has no such layer"


def test_kin_and_kout_of_a_layer(map_report, capsys, tmp_path):
    overrides = ["mapping.kout=4", "mapping.layers={features.3:{kin:2}}", f"out={tmp_path}"]
    map_report.main(["model=vgg8", "crossbar=64x64", *overrides])
    data = json.loads((tmp_path / "vgg8.json").read_text())
    tiling = {layer["name"]: layer["tiling"] for layer in data["layers"]}
    assert (tiling["features.3"]["kin"], tiling["features.3"]["kout"]) == (2, 4)
    assert tiling["features.7"]["kout"] == 4


def test_image_size_and_channels(map_report, tmp_path):
    map_report.main(["model=resnet20", "image_size=[28,20]", "in_channels=1", f"out={tmp_path}"])
    plan = Plan.load(tmp_path / "resnet20.json")
    assert plan.input_shape == (1, 28, 20)
    assert plan.layers[0].geometry.out_size == (28, 20)


def test_a_wrong_value_is_our_error(map_report):
    with pytest.raises(ConfigError, match=r"mapping\.kin=0"):
        map_report.main(["mapping.kin=0"])


def test_the_ratios_in_the_docs_are_those_of_the_planner(load_script):
    docs = (Path(__file__).parents[2] / "docs" / "mapping.md").read_text(encoding="utf-8")
    benchmark = load_script("benchmark")
    measured = benchmark.table(benchmark.RATIO_COLUMNS, benchmark.ratio_rows())
    written = docs.partition("<!-- ratios -->")[2].partition("<!-- end of ratios -->")[0]
    assert written.strip() == measured.strip()
