"""Every kind of layer as a two-dimensional convolution, counted by hand, run on crossbars."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import weight_norm as old_weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

import crosspruner as cp
from crosspruner.hardware import MappingSpec, Plan, plan_model, simulate
from crosspruner.hardware.attention import layer_module
from crosspruner.hardware.layer_modules import operation_of, output_maps, padded_maps, window_of
from crosspruner.hardware.matrix import from_matrix, to_matrix
from crosspruner.hardware.weight_form import attainable, form_of, read_matrix, write_matrix

LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 11)),
    "conv1d_same": (nn.Conv1d(3, 2, 4, padding="same", dilation=2), (3, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0)), (4, 7, 6)),
    "conv2d_reflect": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 6, 6)),
    "conv3d": (nn.Conv3d(2, 4, (2, 3, 3), stride=(2, 1, 1), padding=1, groups=2), (2, 5, 6, 4)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 7)),
    "transposed2d": (
        nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, output_padding=1, groups=2),
        (4, 5, 3),
    ),
    "transposed2d_cut": (nn.ConvTranspose2d(2, 3, 2, padding=2, dilation=1), (2, 6, 6)),
    "linear": (nn.Linear(5, 7), (3, 5)),
}


@pytest.mark.parametrize("mapping", ["folded", "semifolded", "unfolded"])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer_is_computed_on_crossbars(kind, mapping):
    module, shape = LAYERS[kind]
    module = module.double()
    x = torch.randn(2, *shape, dtype=torch.float64)
    plan = plan_model(module, shape, "16x16", mapping)
    torch.testing.assert_close(simulate(plan, module, x), module(x).detach())


@pytest.mark.parametrize("kind", LAYERS)
def test_the_matrix_goes_back_into_the_weight(kind):
    module, _ = LAYERS[kind]
    operation, groups = operation_of(module), getattr(module, "groups", 1)
    matrix = to_matrix(operation, module.weight, groups)
    assert matrix.dim() == 4
    assert matrix.shape[0] == (module.out_features if kind == "linear" else module.out_channels)
    back = from_matrix(operation, matrix, tuple(module.weight.shape), groups)
    assert torch.equal(back, module.weight)


@pytest.mark.parametrize("kind", LAYERS)
def test_maps_and_window_give_the_output(kind):
    module, shape = LAYERS[kind]
    module = module.double()
    x = torch.randn(2, *shape, dtype=torch.float64)
    y = output_maps(module, module(x)).detach()
    maps = padded_maps(module, x, (y.shape[2], y.shape[3]))
    _, stride, dilation = window_of(module)
    groups = getattr(module, "groups", 1)
    found = nn.functional.conv2d(
        maps, read_matrix(module), module.bias, stride, 0, dilation, groups
    )
    torch.testing.assert_close(found.detach(), y)


def test_a_conv3d_counts_channels_times_depths_as_input_fms():
    (layer,) = plan_model(nn.Conv3d(3, 8, (2, 3, 3)), (3, 6, 10, 10), "64x64", "folded").layers
    assert (layer.geometry.in_channels, layer.geometry.kernel, layer.geometry.calls) == (
        6,
        (3, 3),
        5,
    )
    # 9 rows an FM: 7 share 64 rows, so all 6 fit; 8 columns: one crossbar, 8 * 8 positions 5 times.
    assert (layer.compute_crossbars, layer.phases) == (1, 320)


def test_a_conv1d_folds_along_its_positions():
    (layer,) = plan_model(nn.Conv1d(40, 8, 3), (40, 12), "60x8", "semifolded").layers
    assert (layer.kin, layer.compute_crossbars, layer.phases) == (20, 2, 10)


def test_a_transposed_convolution_is_counted_over_its_widened_input():
    (layer,) = plan_model(nn.ConvTranspose2d(4, 2, 2, stride=2), (4, 3, 3), "16x8", "folded").layers
    geometry = layer.geometry
    assert (geometry.in_size, geometry.out_size, geometry.stride) == ((5, 5), (6, 6), (1, 1))
    assert (layer.compute_crossbars, layer.phases) == (1, 36)


def test_conv_groups_share_a_crossbar_on_its_diagonal():
    model = nn.Conv2d(12, 12, 3, padding=1, groups=12)
    (apart,) = plan_model(model, (12, 6, 6), "36x8", "folded").layers
    spec = MappingSpec("folded", grouped="block_diagonal")
    (packed,) = plan_model(model, (12, 6, 6), "36x8", spec).layers
    # 9 rows and 1 column a channel: 4 channels fill 36 rows; 36 of 36 * 8 cells hold a weight.
    assert (apart.bundle, apart.compute_crossbars) == (1, 12)
    assert (packed.bundle, packed.compute_crossbars) == (4, 3)
    assert packed.utilisation == pytest.approx(36 / 288)
    assert apart.utilisation == pytest.approx(9 / 288)
    assert packed.input_table.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert packed.mask_shape == (3, 1)


def test_bundles_are_equal_and_as_large_as_fits():
    spec = MappingSpec("folded", grouped="block_diagonal")
    (layer,) = plan_model(nn.Conv2d(10, 10, 3, groups=10), (10, 6, 6), "36x8", spec).layers
    assert (layer.bundle, layer.compute_crossbars) == (2, 5)  # 4 would fit; 2 divides 10


@pytest.mark.parametrize("mapping", ["folded", "semifolded", "unfolded"])
@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_pruned_bundles_are_computed_saved_and_loaded(grain, mapping, tmp_path):
    torch.manual_seed(0)
    model = nn.Conv2d(16, 24, 3, padding=1, groups=4, bias=False).double()
    spec = MappingSpec(mapping, kin=2, grouped="block_diagonal")
    dense = plan_model(model, (16, 5, 5), "64x64", spec, grain)
    (layer,) = dense.layers
    assert layer.bundle > 1
    assert layer.input_groups == 2
    units, groups = layer.mask_shape
    assert units == (24 if grain == "column" else 4 // layer.bundle * layer.output_groups)
    mask = torch.ones(units, groups, dtype=torch.bool)
    mask[::2, 0] = False
    plan = dense.pruned({"": mask}, grain)
    kept = plan.layers[0].kept
    with torch.no_grad():
        model.weight.mul_(kept[:, :, None, None])
    assert 0 < int(kept.sum()) < kept.numel()
    assert plan.layers[0].weights_kept == pytest.approx(float(kept.double().mean()))
    assert plan.compute_crossbars <= dense.compute_crossbars
    loaded = Plan.load(plan.save(tmp_path / "mapping.json"))
    assert torch.equal(loaded.layers[0].mask, mask)
    x = torch.randn(2, 16, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(simulate(loaded, model, x), model(x).detach())


class Attention(nn.Module):
    """As timm has it."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        shape = (batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


def test_a_fused_projection_is_three_matrices_and_heads_may_be_respected():
    model = Attention()
    (qkv, _) = plan_model(model, (5, 8), "8x12", "folded").layers
    # 24 outputs on 12 columns would be 2 crossbars; as three matrices of 8 they are 3.
    assert (qkv.geometry.sections, qkv.kout, qkv.compute_crossbars, qkv.phases) == (3, 8, 3, 5)
    (qkv, _) = plan_model(model, (5, 8), "8x12", MappingSpec("folded", heads="respected")).layers
    assert (qkv.geometry.sections, qkv.kout, qkv.compute_crossbars) == (6, 4, 6)
    assert qkv.output_groups_table.tolist() == torch.arange(24).view(6, 4).tolist()


def test_columns_of_two_sections_never_share_a_crossbar():
    spec = MappingSpec("folded", kin=4)
    dense = plan_model(Attention(), (5, 8), "8x8", spec, "column", exclude=())
    mask = torch.zeros(24, 2, dtype=torch.bool)
    mask[:, 0] = True  # every output keeps the first input group
    mask[[0, 8, 16], 1] = True  # one column of each matrix keeps the second
    plan = dense.pruned({"qkv": mask}, "column")
    (qkv, _) = plan.layers
    assert qkv.compute_crossbars == 3 + 3
    outputs = qkv.packing.block_outputs[3:]
    assert [[o for o in row if o >= 0] for row in outputs.tolist()] == [[0], [8], [16]]


def test_tokens_at_once_trade_crossbars_for_phases():
    model = nn.Linear(8, 4).double()
    one = plan_model(model, (10, 8), "8x4", "semifolded")
    four = plan_model(model, (10, 8), "8x4", MappingSpec("semifolded", tokens=4))
    assert (one.compute_crossbars, one.phases) == (1, 10)
    assert (four.compute_crossbars, four.phases) == (4, 3)
    x = torch.randn(2, 10, 8, dtype=torch.float64)
    torch.testing.assert_close(simulate(four, model, x), model(x).detach())


class Sequences(nn.Module):
    def __init__(self, across=False):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.across = across
        with torch.no_grad():
            self.attention.in_proj_bias.normal_()

    def forward(self, x):
        other = x[:, ::2] if self.across else x
        return self.attention(x, other, other, need_weights=False)[0]


def test_multi_head_attention_is_planned_and_computed():
    model = Sequences().double().eval()
    plan = plan_model(model, (6, 8), "8x16", "folded", exclude=())
    names = [layer.name for layer in plan.layers]
    assert names == ["attention.in_proj", "attention.out_proj"]
    assert [layer.compute_crossbars for layer in plan.layers] == [3, 1]
    assert [layer.phases for layer in plan.layers] == [6, 6]
    assert layer_module(model, names[0]).weight is model.attention.in_proj_weight
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(simulate(plan, model, x), model(x).detach())


def test_attention_to_another_sequence_is_counted_but_not_pruned():
    model = Sequences(across=True).double().eval()
    with pytest.warns(UserWarning, match=r"attention\.in_proj: query, key and value"):
        plan = plan_model(model, (6, 8), "8x16", "folded", exclude=())
    assert [layer.prunable for layer in plan.layers] == [False, True]
    assert [layer.phases for layer in plan.layers] == [6, 6]
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(simulate(plan, model, x), model(x).detach())


class StdConv2d(nn.Conv2d):
    """Named and placed as timm's."""

    __module__ = "timm.layers.std_conv"
    eps = 1e-6

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(flat, None, None, training=True, eps=self.eps)
        weight = weight.reshape_as(self.weight)
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)


FORMS = {
    "plain": lambda: nn.Conv2d(3, 4, 3),
    "old_norm": lambda: old_weight_norm(nn.Conv2d(3, 4, 3)),
    "new_norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    "transposed_norm": lambda: parametrizations.weight_norm(nn.ConvTranspose2d(3, 4, 3)),
    "standardised": lambda: StdConv2d(3, 4, 3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated.*")
@pytest.mark.parametrize("form", FORMS)
def test_a_weight_that_is_written_is_the_weight_that_is_computed(form):
    torch.manual_seed(0)
    module = FORMS[form]().double()
    kept = torch.rand(4, 3, 1, 1) < 0.6
    kept[:, 0] = True
    wanted = attainable(module, torch.randn(4, 3, 3, 3, dtype=torch.float64) * kept)
    write_matrix(module, wanted)
    # Without a gain, the norm is fixed up to the eps in it.
    loose = {"rtol": 1e-5, "atol": 1e-5} if form == "standardised" else {}
    torch.testing.assert_close(read_matrix(module), wanted, **loose)
    # What is saved holds exact zeros, and a forward pass computes the same.
    saved = max(module.parameters(), key=lambda p: p.numel())
    assert int((saved == 0).sum()) == 9 * int((~kept).sum())
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    plan = plan_model(module, (3, 5, 5), "16x16", "folded")
    assert plan.layers[0].weight_form == form_of(module)
    torch.testing.assert_close(simulate(plan, module, x), module(x).detach())


def test_an_unknown_parametrization_is_named_and_never_pruned():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 2, 1)
    ).eval()
    with pytest.warns(UserWarning, match="^1: the weight is computed anew"):
        plan = plan_model(model, (2, 4, 4), "2x4", exclude=())
    assert [layer.prunable for layer in plan.layers] == [True, False, True]
    assert "weight computed in each pass, never pruned: 1" in plan.table()
    x = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(simulate(plan, model, x), model(x).detach())


class Bare(nn.Module):
    """A convolution by a function, with a parameter that no layer holds."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 1)
        self.w = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x):
        return F.conv2d(self.first(x), self.w)


def test_a_weight_that_cannot_be_pruned_is_named_with_its_own_remedy():
    with pytest.warns(UserWarning, match="^w: the weight is used directly in forward, not through"):
        plan_model(Bare(), (2, 4, 4), "2x4")
    masked = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1))
    prune.l1_unstructured(masked[1], "weight", 0.5)
    with pytest.warns(UserWarning, match=r"^1: torch.nn.utils.prune .*prune\.remove\(layer"):
        plan_model(masked, (2, 4, 4), "2x4")


def test_a_plan_and_the_pruning_after_it_warn_once():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 2, 1)
    ).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan_model(model, (2, 4, 4), "2x4")
        cp.prune(model, [torch.randn(8, 2, 4, 4)], "2x4", ratio=0, solver="magnitude")
    assert [str(one.message)[:2] for one in caught] == ["1:"]


class Made(TorchDispatchMode):
    """Notes the size of every tensor with numbers that is made."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not out.is_meta:
            self.sizes.append(out.numel())
        return out


def test_planning_copies_no_weights():
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(4096, 9)
    )
    with Made() as made:
        plan_model(model, (3, 12, 12))
    assert max(made.sizes) < 1024  # tables of indices; the smallest weight has 1728 numbers
