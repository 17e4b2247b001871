import copy
import json
import pickle
import re

import pytest
import torch
from torch import nn

from crosspruner.errors import ConfigError, PlanError
from crosspruner.hardware import Crossbar, MappingSpec, Plan, plan_model


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def small_plan(**kwargs):
    return plan_model(small_net(), (3, 8, 8), "16x16", **kwargs)


def five_by_seven(**kwargs):
    return plan_model(nn.Linear(5, 7), (5,), "4x4", exclude=(), **kwargs)


COLUMNS = torch.tensor([[1, 0], [1, 1], [0, 0], [1, 0], [1, 1], [0, 0], [1, 1]], dtype=torch.bool)


def test_five_by_seven_dense_and_pruned():
    dense = five_by_seven(grain="column")
    assert dense.compute_crossbars == 4
    plan = dense.pruned({"": COLUMNS})
    layer = plan.layers[0]
    assert (plan.compute_crossbars, plan.dense_compute_crossbars) == (3, 4)
    assert plan.compute_saved == 0.25
    # 5 columns of 4 weights and 3 of 1 weight, on 3 crossbars of 16 cells.
    assert (layer.cells_used, layer.cells_occupied) == (23, 48)
    assert layer.weights_kept == 23 / 35


def test_five_by_seven_reduction():
    # Vectors of 4 on 4 rows: cut in 2 pieces of 2, two of which fit, so one addition each.
    dense = five_by_seven(grain="column")
    assert dense.reduction_crossbars == 2 * 2
    # Outputs 4, 5, 6 still hold one with two inputs, as do 0..3.
    assert dense.pruned({"": COLUMNS}).reduction_crossbars == 4
    only_first = COLUMNS.clone()
    only_first[4:, 1] = False
    assert dense.pruned({"": only_first}).reduction_crossbars == 2


def test_counts_of_a_convolution_worked_by_hand():
    layer = small_plan().layer("1")  # see test_mapping.test_small_convolution
    assert layer.compute_crossbars == 32
    # 8 partial sums of 16 values, cut in 2 pieces of 8, 2 fit in 16 rows: 7 additions, 4 slices.
    assert layer.reduction_crossbars == 7 * 2 * 4
    assert layer.buffer_crossbars == 8 * 8 * 2 // 16
    assert layer.total_crossbars == 32 + 56 + 8
    # 3 kernel rows x (8 + 2 * 7 column taps inside) x 64 kernels.
    assert layer.cells_used == 3 * 22 * 64
    assert layer.utilisation == 3 * 22 * 64 / (32 * 256)


@pytest.mark.parametrize(("mapping", "copies"), [("folded", 9), ("unfolded", 22 * 22)])
def test_cells_used_by_the_other_mappings(mapping, copies):
    assert small_plan(mapping=mapping).layer("1").cells_used == copies * 64


def test_unfolded_needs_no_buffers():
    assert small_plan(mapping="unfolded").buffer_crossbars == 0


def test_vector_add_of_three_vectors():
    # Kout 4 on 12 rows: 3 vectors fit, so 5 partial sums take ceil(4 / 2) crossbars.
    model = nn.Linear(60, 4)
    plan = plan_model(model, (60,), "12x4", "folded", exclude=())
    assert (plan.layers[0].input_groups, plan.reduction_crossbars) == (5, 2)


def test_totals_are_sums_over_layers():
    plan = small_plan()
    for name in ("compute", "reduction", "buffer", "total"):
        key = f"{name}_crossbars"
        assert getattr(plan, key) == sum(getattr(layer, key) for layer in plan.layers)
    assert plan.phases == 8 + 8 + 8 + 1
    assert plan.compute_saved == 0


def test_reduction_follows_the_pruned_fan_in_and_buffers_stay():
    plan = small_plan()
    mask = torch.ones(1, 8, dtype=torch.bool)
    mask[0, 2:] = False
    pruned = plan.pruned({"1": mask})
    assert pruned.layer("1").reduction_crossbars == 1 * 2 * 4
    assert pruned.layer("1").buffer_crossbars == plan.layer("1").buffer_crossbars
    assert pruned.layer("1").compute_crossbars == 2 * 4
    assert plan.layer("1").mask is None


def test_layers_without_a_mask_stay_dense():
    pruned = small_plan().pruned({"1": torch.zeros(1, 8, dtype=torch.bool)})
    assert pruned.layer("0").compute_crossbars == small_plan().layer("0").compute_crossbars
    assert pruned.layer("1").compute_crossbars == 0


def random_pruned(grain):
    plan = small_plan(grain=grain)
    generator = torch.Generator().manual_seed(3)
    masks, inputs, outputs = {}, {}, {}
    for layer in plan.layers[1:]:
        masks[layer.name] = torch.rand(layer.mask_shape, generator=generator) < 0.6
        groups, geometry = layer.conv_groups, layer.geometry
        inputs[layer.name] = torch.rand(groups, geometry.group_inputs, generator=generator).argsort(
            1
        )
        outputs[layer.name] = torch.rand(
            groups, geometry.group_outputs, generator=generator
        ).argsort(1)
    return plan.pruned(masks, grain, inputs, outputs)


@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_saved_plan_round_trips_exactly(tmp_path, grain):
    plan = random_pruned(grain)
    loaded = Plan.load(plan.save(tmp_path / "sub" / "mapping.json"))
    assert loaded.to_dict() == plan.to_dict()
    for ours, theirs in zip(plan.layers, loaded.layers, strict=True):
        assert ours.geometry == theirs.geometry
        assert ours.tiling == theirs.tiling
        for key in ("mask", "input_order", "output_order"):
            mine, read = getattr(ours, key), getattr(theirs, key)
            assert (mine is None) == (read is None)
            assert mine is None or torch.equal(mine, read)
    assert (loaded.crossbar, loaded.mapping) == (plan.crossbar, plan.mapping)


@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_reordered_groups_that_share_crossbars_round_trip(tmp_path, grain):
    """With several input groups, the table of a bundle takes turns between its conv groups."""
    spec = MappingSpec("folded", grouped="block_diagonal", kin=3, kout=3)
    net = nn.Conv2d(16, 16, 3, padding=1, groups=2)
    dense = plan_model(net, (16, 8, 8), "64x64", spec, grain, exclude=())
    (layer,) = dense.layers
    assert (layer.bundle, layer.input_groups, layer.output_groups) == (2, 3, 3)
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(layer.mask_shape, generator=generator) < 0.6
    orders = [{"": torch.rand(2, 8, generator=generator).argsort(1)} for _ in range(2)]
    plan = dense.pruned({"": mask}, grain, *orders)
    loaded = Plan.load(plan.save(tmp_path / "mapping.json"))
    assert loaded.to_dict() == plan.to_dict()
    assert torch.equal(loaded.layers[0].input_order, orders[0][""])
    assert torch.equal(loaded.layers[0].output_order, orders[1][""])
    assert torch.equal(loaded.layers[0].mask, mask)


@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_saved_plan_can_be_counted_by_hand(tmp_path, grain):
    plan = random_pruned(grain)
    data = json.loads(plan.save(tmp_path / "mapping.json").read_text())
    counted = [
        len(layer["blocks"]) * layer["slices"] * layer["row_splits"] for layer in data["layers"]
    ]
    assert counted == [layer.compute_crossbars for layer in plan.layers]
    assert sum(counted) == data["compute_crossbars"] == plan.compute_crossbars
    for layer in data["layers"]:
        rows = sorted(fm for group in layer["input_groups"] for fm in group)
        assert rows == list(range(layer["geometry"]["in_channels"]))


def test_the_mapping_spec_round_trips(tmp_path):
    spec = MappingSpec("semifolded", "one", kout=2, layers={"1": {"kin": 1}})
    crossbar = Crossbar(16, 16, cell_bits=4)
    plan = plan_model(small_net(), (3, 8, 8), crossbar, spec)
    loaded = Plan.load(plan.save(tmp_path / "plan.json"))
    assert (loaded.mapping, loaded.crossbar) == (spec, crossbar)


def test_plans_can_be_copied_and_pickled():
    plan = random_pruned("column")
    assert copy.deepcopy(plan).to_dict() == plan.to_dict()
    assert pickle.loads(pickle.dumps(plan)).to_dict() == plan.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=99), "version 99"),
        (lambda d: d.update(compute_crossbars=1), "changed by hand"),
        (lambda d: d["layers"][1]["blocks"].pop(), "changed by hand"),
        (lambda d: d.pop("crossbar"), "damaged"),
    ],
)
def test_damaged_plans_are_refused(tmp_path, change, message):
    path = random_pruned("column").save(tmp_path / "plan.json")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError, match=message):
        Plan.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_files_that_are_no_plan_are_refused(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError, match="plan"):
        Plan.load(path)
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.load(tmp_path / "nothing.json")


def test_masks_that_do_not_fit_are_refused():
    plan = small_plan()
    with pytest.raises(PlanError, match=re.escape("(3, 8); at grain=crossbar it must be (1, 8)")):
        plan.pruned({"1": torch.ones(3, 8)})
    with pytest.raises(PlanError, match="no layer 'conv'"):
        plan.pruned({"conv": torch.ones(1, 8)})
    with pytest.raises(PlanError, match="0 and 1"):
        plan.pruned({"1": torch.full((1, 8), 0.5)})
    with pytest.raises(PlanError, match=r"permutation of 0\.\.7"):
        plan.pruned({}, input_orders={"1": torch.zeros(1, 8, dtype=torch.int64)})


def test_masks_of_zeros_and_ones_will_do():
    mask = torch.tensor([[1, 0, 1, 0, 0, 0, 0, 0]], dtype=torch.uint8)
    assert small_plan().pruned({"1": mask}).layer("1").compute_crossbars == 8


def test_first_and_last_layers_are_not_prunable_by_default():
    plan = small_plan()
    assert [layer.prunable for layer in plan.layers] == [False, True, True, False]
    assert all(layer.prunable for layer in small_plan(exclude=()).layers)
    chosen = small_plan(include="[12]", exclude=["2"])
    assert [layer.prunable for layer in chosen.layers] == [False, True, False, False]


def test_a_pattern_that_matches_nothing_names_the_layers():
    with pytest.raises(ConfigError, match=re.escape("exclude: 'head*' matches no layer.")):
        small_plan(exclude=["head*"])
    with pytest.raises(ConfigError, match=re.escape("The layers are: 0, 1, 2, 5.")):
        small_plan(mapping=MappingSpec(layers={"7": {"kin": 1}}))


@pytest.mark.parametrize("shape", [8, "8", None, (), (3, 8.5, 8), (3, -1, 8)])
def test_an_input_shape_that_is_none_is_refused(shape):
    with pytest.raises(ConfigError, match="without the batch dimension, such as"):
        plan_model(small_net(), shape)


def test_unknown_grain():
    with pytest.raises(ConfigError, match=re.escape("grain=colum: choose one of crossbar, column")):
        small_plan(grain="colum")


def test_shared_layers_answer_under_both_names():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    plan = plan_model(model, (4,), "4x4")
    assert plan.layer("1") is plan.layer("0")
    assert plan.compute_crossbars == 1
    with pytest.raises(PlanError, match="give the mask under that name"):
        plan.pruned({"1": torch.ones(1, 1)})


def test_rows_are_flat_and_plain():
    rows = random_pruned("column").rows()
    assert rows[1]["layer"] == "1"
    assert json.loads(json.dumps(rows)) == rows
    expected = (
        "layer kind in_fms out_fms kernel kin kout input_groups output_groups slices prunable "
        "compute_dense compute saved reduction_dense reduction buffer phases weights_kept"
    )
    assert set(expected.split()) <= set(rows[0])


def test_table_names_layers_and_totals():
    plan = random_pruned("crossbar")
    lines = [line.strip() for line in plan.table().splitlines()]
    assert any(line.startswith("0 *") for line in lines)
    total = next(line for line in lines if line.startswith("total "))
    assert str(plan.dense_compute_crossbars) in total
    assert str(plan.compute_crossbars) in total
    assert f"{plan.compute_saved:.1%}" in total
    assert max(map(len, lines)) <= 160
