"""The simulator against the layer it stands for, and the count against crossbars listed one by one.

The reference side of each comparison shares no code with the package: masks are expanded and
crossbars enumerated by plain loops over FMs, outputs and positions.
"""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from crosspruner.errors import ConfigError, PlanError
from crosspruner.hardware import Crossbar, MappingSpec, plan_model, simulate


def units(layer):
    """For each conv group: the FMs of each input group and the outputs of each output group."""
    geometry, groups = layer.geometry, []
    for g in range(layer.conv_groups):
        fms = list(range(geometry.group_inputs))
        outs = list(range(geometry.group_outputs))
        if layer.input_order is not None:
            fms = layer.input_order[g].tolist()
        if layer.output_order is not None:
            outs = layer.output_order[g].tolist()
        fms = [fms[i : i + layer.kin] for i in range(0, len(fms), layer.kin)]
        outs = [g * geometry.group_outputs + o for o in outs]
        groups.append((fms, [outs[i : i + layer.kout] for i in range(0, len(outs), layer.kout)]))
    return groups


def kept_blocks(layer):
    """(conv group, input group, outputs) of each physical block, built column by column."""
    blocks = []
    for g, (fms, outs) in enumerate(units(layer)):
        for p in range(len(fms)):
            if layer.mask is None or layer.grain == "crossbar":
                for q, group in enumerate(outs):
                    if layer.mask is None or layer.mask[g * len(outs) + q, p]:
                        blocks.append((g, p, group))
                continue
            filling = []
            for out in itertools.chain(*outs):
                if layer.mask[out, p]:
                    filling.append(out)
                if len(filling) == layer.kout:
                    blocks.append((g, p, filling))
                    filling = []
            if filling:
                blocks.append((g, p, filling))
    return blocks


def masked_weight(layer, weight):
    """The weight with everything zeroed that no block holds."""
    kept = torch.zeros_like(weight)
    groups = units(layer)
    for g, p, outs in kept_blocks(layer):
        for out, fm in itertools.product(outs, groups[g][0][p]):
            kept[out, fm] = weight[out, fm]
    return kept


def rows_needed(layer, sy, sx, part):
    """Input positions per FM that one crossbar must see in one phase, by the definition."""
    geometry, (h, w) = layer.geometry, layer.tiling.window
    folded, unfolded = (layer.tiling.mapping == name for name in ("folded", "unfolded"))
    ys = range(sy * h, min((sy + 1) * h, geometry.out_size[0])) if unfolded else [2]
    xs = [2] if folded else range(sx * w, min((sx + 1) * w, geometry.out_size[1]))
    taps = range(geometry.kernel[0]) if layer.tiling.kernel_rows == "all" else [part]
    rows = set()
    for y, x, ky, kx in itertools.product(ys, xs, taps, range(geometry.kernel[1])):
        row = y * geometry.stride[0] - geometry.padding[0] + ky * geometry.dilation[0]
        column = x * geometry.stride[1] - geometry.padding[1] + kx * geometry.dilation[1]
        # Where rows stand still, padding needs none.
        if unfolded and not 0 <= row < geometry.in_size[0]:
            continue
        if not folded and not 0 <= column < geometry.in_size[1]:
            continue
        rows.add((row, column))
    return len(rows)


def enumerate_crossbars(layer):
    """Every physical crossbar as a key, one for each place that some output needs."""
    geometry, (h, w), limit = layer.geometry, layer.tiling.window, layer.crossbar.rows
    groups = units(layer)
    parts = range(geometry.kernel[0]) if layer.tiling.kernel_rows == "one" else range(1)
    places = {
        {
            "folded": (0, 0),
            "semifolded": (0, x // w),
            "unfolded": (y // h, x // w),
        }[layer.tiling.mapping]
        for y in range(geometry.out_size[0])
        for x in range(geometry.out_size[1])
    }
    crossbars = set()
    for number, (g, p, outs) in enumerate(kept_blocks(layer)):
        fms = len(groups[g][0][p])
        assert len(outs) * h * w * layer.crossbar.cells_per_weight <= layer.crossbar.cols
        assert fms * layer.tiling.fm_rows <= limit or layer.kin == 1
        for (sy, sx), part, row in itertools.product(places, parts, range(layer.tiling.fm_rows)):
            crossbars.add((g, p, number, sy, sx, part, row // limit))
    for (sy, sx), part in itertools.product(places, parts):
        assert rows_needed(layer, sy, sx, part) <= layer.tiling.fm_rows
    return crossbars


@st.composite
def pruned_layers(draw):
    """A random layer, its pruned plan and an input."""
    seed = draw(st.integers(0, 2**31 - 1))
    torch.manual_seed(seed)
    sizes = st.integers(1, 7)
    if draw(st.integers(0, 9)) == 0:
        module = nn.Linear(draw(st.integers(1, 40)), draw(st.integers(1, 30)))
        shape = (module.in_features,)
    else:
        groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
        kernel = (draw(sizes), draw(sizes))
        dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
        padding = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
        stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        if stride == (1, 1) and draw(st.booleans()):
            padding = "same"
        least = [
            1 if padding == "same" else max(d * (k - 1) + 1 - 2 * padding[i], 1)
            for i, (d, k) in enumerate(zip(dilation, kernel, strict=True))
        ]
        module = nn.Conv2d(
            groups * draw(st.integers(1, 5)),
            groups * draw(st.integers(1, 6)),
            kernel,
            stride,
            padding,
            dilation,
            groups,
            bias=draw(st.booleans()),
            padding_mode=draw(st.sampled_from(["zeros", "zeros", "zeros", "replicate"])),
        )
        shape = (module.in_channels, *(n + draw(st.integers(0, 7)) for n in least))
    cells = draw(st.sampled_from([(8, False), (8, False), (4, False), (8, True)]))
    sides = st.one_of(st.integers(8, 64), st.sampled_from([128, 256, 512]))
    crossbar = Crossbar(draw(sides), draw(sides), 8, *cells)
    spec = MappingSpec(
        draw(st.sampled_from(["folded", "semifolded", "unfolded"])),
        draw(st.sampled_from(["all", "one"])),
    )
    grain = draw(st.sampled_from(["crossbar", "column"]))
    plan = plan_model(module, shape, crossbar, spec, grain)
    if draw(st.integers(0, 3)):
        # Smaller tiles than the best ones give more blocks to prune.
        chosen = plan.layers[0].tiling
        kin, kout = draw(st.integers(1, chosen.kin)), draw(st.integers(1, chosen.kout))
        spec = MappingSpec(spec.name, spec.kernel_rows, kin, kout)
        plan = plan_model(module, shape, crossbar, spec, grain)
    layer, geometry = plan.layers[0], plan.layers[0].geometry
    masks, inputs, outputs = {}, {}, {}
    if draw(st.integers(0, 7)):
        masks[""] = torch.rand(layer.mask_shape) < draw(st.floats(0, 1))
    if draw(st.booleans()):
        inputs[""] = torch.rand(geometry.conv_groups, geometry.group_inputs).argsort(1)
    if draw(st.booleans()):
        outputs[""] = torch.rand(geometry.conv_groups, geometry.group_outputs).argsort(1)
    plan = plan.pruned(masks, grain, inputs, outputs)
    return plan, module.double(), torch.randn(2, *shape, dtype=torch.float64)


def check(case):
    plan, module, x = case
    layer = plan.layers[0]
    simulated = simulate(plan, module, x)
    with torch.no_grad():
        module.weight.copy_(masked_weight(layer, module.weight))
        expected = module(x)
    torch.testing.assert_close(simulated, expected, rtol=1e-12, atol=1e-12)
    assert layer.compute_crossbars == len(enumerate_crossbars(layer))


RANDOM = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=500, **RANDOM)
@given(pruned_layers())
def test_random_layers_compute_the_masked_layer_on_the_counted_crossbars(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=5000, **RANDOM)
@given(pruned_layers())
def test_many_random_layers(case):
    check(case)


def test_five_by_seven_by_hand():
    # Inputs 0-3 drive crossbars 0 and 1, input 4 drives crossbar 2 after recombination.
    module = nn.Linear(5, 7, bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.arange(35.0).view(7, 5))
    mask = torch.tensor([[1, 0], [1, 1], [0, 0], [1, 0], [1, 1], [0, 0], [1, 1]]).bool()
    plan = plan_model(module, (5,), "4x4", grain="column").pruned({"": mask})
    y = simulate(plan, module, torch.tensor([[1.0, 1, 1, 1, 10]], dtype=torch.float64))
    first = [0 + 1 + 2 + 3, 5 + 6 + 7 + 8, 0, 66, 86, 0, 126]
    second = [0, 90, 0, 0, 240, 0, 340]
    assert y.tolist() == [[a + b for a, b in zip(first, second, strict=True)]]


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten())
    model.train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    simulate(plan_model(model, (3, 6, 6), "16x16"), model, torch.randn(2, 3, 6, 6))
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)


def test_the_model_recovers_from_an_error_inside():
    class Fails(nn.Conv2d):
        def forward(self, x):
            raise RuntimeError("inside")

    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    plan = plan_model(model, (1, 4, 4), "16x16")
    model[0] = Fails(1, 1, 1)
    with pytest.raises(RuntimeError, match="inside"):
        simulate(plan, model, torch.zeros(1, 1, 4, 4))
    assert not model[0]._forward_hooks


def test_a_module_called_at_two_sizes_and_shared_weights():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 3, padding=1)
            self.b = nn.Conv2d(3, 3, 3, padding=1)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(self.a(x)[..., ::2, ::2]))

    model = Net().double()
    plan = plan_model(model, (3, 11, 9), "32x32", exclude=())
    mask = torch.rand(plan.layer("a").mask_shape) < 2
    mask[0, 0] = False
    plan = plan.pruned({"a": mask})
    x = torch.randn(1, 3, 11, 9, dtype=torch.float64)
    simulated = simulate(plan, model, x)
    with torch.no_grad():
        model.a.weight.copy_(masked_weight(plan.layer("a"), model.a.weight))
        torch.testing.assert_close(simulated, model(x), rtol=1e-12, atol=1e-12)


def test_padding_and_weights_made_in_a_subclass():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            x = nn.functional.pad(x, (0, 1, 0, 1))
            return nn.functional.conv2d(x, weight, self.bias, self.stride)

    model = Standardised(2, 3, 3, stride=2).double()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    with pytest.warns(UserWarning, match="computed anew in each pass"):
        plan = plan_model(model, (2, 8, 8), "64x64", exclude=())
    assert not plan.layers[0].prunable
    assert plan.layers[0].geometry.in_size == (8, 8)
    torch.testing.assert_close(simulate(plan, model, x), model(x).detach())


def test_linear_layers_over_tokens():
    model = nn.Linear(6, 5).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    plan = plan_model(model, (3, 4, 6), "4x4")
    assert plan.phases == 12
    torch.testing.assert_close(simulate(plan, model, x), model(x).detach())


def test_inputs_larger_than_planned_are_refused():
    model = nn.Conv2d(1, 1, 3)
    plan = plan_model(model, (1, 8, 8), "16x16")
    with pytest.raises(PlanError, match="9x9 does not fit the plan, which was made for 8x8"):
        simulate(plan, model, torch.zeros(1, 1, 9, 9))


@pytest.mark.parametrize(
    "x", [torch.zeros(1, 8, 8), torch.zeros(8, 8), torch.zeros(2, 3, 8, 8), None, [[0.0]]]
)
def test_what_is_no_batch_of_images_is_refused(x):
    model = nn.Conv2d(1, 1, 3)
    plan = plan_model(model, (1, 8, 8), "16x16")
    with pytest.raises(ConfigError, match=r"takes tensors \(B, 1, 8, 8\)"):
        simulate(plan, model, x)


def test_plans_of_another_model_are_refused():
    plan = plan_model(nn.Sequential(nn.Linear(3, 4)), (3,), "4x4")
    with pytest.raises(PlanError, match="the model has not"):
        simulate(plan, nn.Linear(3, 4), torch.zeros(1, 3))
    with pytest.raises(PlanError, match=r"weight is \(5, 3, 1, 1\), the plan's \(4, 3, 1, 1\)"):
        simulate(plan, nn.Sequential(nn.Linear(3, 5)), torch.zeros(1, 3))
