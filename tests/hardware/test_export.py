"""Each export is read back and compared with the plan or the network it came from."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crosspruner.errors import ModelError, PlanError
from crosspruner.hardware import Crossbar, MappingSpec, plan_model
from crosspruner.hardware.export import (
    export_limits,
    export_neurosim,
    export_onnx,
    export_pimcomp,
)
from crosspruner.hardware.export.packages import needs


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


@pytest.fixture(scope="module")
def model():
    model = network()
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def plan(model):
    plan = plan_model(model, (3, 8, 8), "18x8", "folded", "column", exclude=())
    generator = torch.Generator().manual_seed(1)
    masks = {
        layer.name: torch.rand(layer.mask_shape, generator=generator) < 0.6 for layer in plan.layers
    }
    return plan.pruned(masks)


def masked(model, plan):
    """The pruned weights, in float64."""
    modules = dict(model.named_modules())
    weights = {}
    for layer in plan.layers:
        weight = modules[layer.name].weight.detach().double().clone()
        for out in range(weight.shape[0]):
            for fm in range(weight.shape[1]):
                if not layer.mask[out, fm // layer.kin]:
                    weight[out, fm] = 0
        weights[layer.name] = weight
    return weights


def test_kept_pairs_follow_the_mask(model, plan):
    for name, weight in masked(model, plan).items():
        assert torch.equal(
            plan.layer(name).kept,
            (weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0,
        )


def test_neurosim_network_lines(model, plan, tmp_path):
    path = export_neurosim(plan, model, tmp_path)
    # input size, input FMs, kernel, output FMs, pooling after, stride; a line per conv group
    assert path.read_text().splitlines() == [
        "8,8,3,3,3,8,0,1",
        "8,8,4,3,3,6,1,2",
        "8,8,4,3,3,6,1,2",
        "1,1,48,1,1,10,0,1",
    ]


def test_neurosim_weights_read_back(model, plan, tmp_path):
    export_neurosim(plan, model, tmp_path)
    weights = masked(model, plan)
    matrix = np.loadtxt(tmp_path / "weight_0.csv", delimiter=",")
    assert matrix.shape == (27, 8)
    scale = float(weights["0"].abs().max())
    np.testing.assert_allclose(matrix * scale, weights["0"].flatten(1).T, atol=1e-5 * scale)
    second = np.loadtxt(tmp_path / "weight_3.1.csv", delimiter=",")
    part = weights["3"][6:].flatten(1).T
    np.testing.assert_allclose(second * float(part.abs().max()), part, atol=1e-5)


def test_neurosim_inputs_and_weights_give_the_layer(model, plan, tmp_path):
    """Bits times weights, summed as NeuroSim does, are the convolution up to quantisation."""
    image = torch.randn(1, 3, 8, 8)
    export_neurosim(plan, model, tmp_path, image, input_bits=12)
    bits = np.loadtxt(tmp_path / "input_0.csv", delimiter=",").reshape(27, 64, 12)
    worth = np.array([-(2**11), *(2**i for i in range(10, -1, -1))])
    inputs = bits @ worth * float(image.abs().max()) / (2**11 - 1)
    weights = masked(model, plan)["0"]
    matrix = np.loadtxt(tmp_path / "weight_0.csv", delimiter=",") * float(weights.abs().max())
    expected = F.conv2d(image.double(), weights, padding=1)[0].flatten(1)
    np.testing.assert_allclose(matrix.T @ inputs, expected, atol=5e-3)
    command = (tmp_path / "trace_command.sh").read_text().split()
    assert command[1:8] == ["NetWork.csv", "8", "12", "18", "18", "weight_0.csv", "input_0.csv"]
    assert all((tmp_path / name).exists() for name in command[6:])


def test_neurosim_refuses_what_it_cannot_say(tmp_path):
    model = nn.Conv2d(2, 2, 3, dilation=2)
    with pytest.raises(PlanError, match="knows no dilation"):
        export_neurosim(plan_model(model, (2, 9, 9), "32x32"), model, tmp_path)


@pytest.mark.parametrize("tokens", [1, 3, 4])
def test_neurosim_inputs_of_a_sequence_are_its_tokens(tmp_path, tokens):
    model = nn.Linear(4, 5)
    plan = plan_model(model, (6, 4), "32x32", MappingSpec("semifolded", tokens=tokens), exclude=())
    sequence = torch.randn(1, 6, 4)
    line = export_neurosim(plan, model, tmp_path, sequence, input_bits=12).read_text()
    positions = -(-6 // tokens) * tokens
    assert line == f"{positions // tokens},{tokens},4,1,1,5,0,1\n"
    bits = np.loadtxt(tmp_path / "input_layer.csv", delimiter=",").reshape(4, positions, 12)
    worth = np.array([-(2**11), *(2**i for i in range(10, -1, -1))])
    inputs = bits @ worth * float(sequence.abs().max()) / (2**11 - 1)
    np.testing.assert_allclose(inputs[:, :6], sequence[0].T, atol=1e-3)
    assert not inputs[:, 6:].any()


class Twice(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(self.layer(x))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Conv3d(2, 3, 3), (2, 5, 6, 6)),
        (Twice(nn.Conv2d(2, 2, 3, padding=1)), (2, 6, 6)),
        (Twice(nn.Linear(4, 4)), (4,)),
        (Twice(nn.Linear(4, 4)), (3, 4)),
    ],
)
def test_neurosim_refuses_layers_of_which_it_would_hold_one_call(model, shape, tmp_path):
    with pytest.raises(PlanError, match=r"runs [2-6] times per image"):
        export_neurosim(plan_model(model, shape, "32x32"), model, tmp_path)


def test_limits_give_the_folded_tiles(plan, tmp_path):
    layers = json.loads((export_limits(plan, tmp_path) / "layers.json").read_text())
    for layer in plan.layers:
        limit, geometry = layers[layer.name], layer.geometry
        matrix = geometry.group_inputs * geometry.kernel[0] * geometry.kernel[1]
        tiles = -(-matrix // limit["rows"]) * -(-geometry.group_outputs // limit["cols"])
        assert tiles == limit["tiles"] == layer.input_groups * layer.output_groups
        assert limit["rows"] <= 18
        assert limit["cols"] <= 8


def test_limits_of_the_crossbar(tmp_path):
    crossbar = Crossbar(64, 64, weight_bits=8, cell_bits=2, differential=True)
    folder = export_limits(plan_model(nn.Linear(100, 9), (100,), crossbar), tmp_path)
    core = json.loads((folder / "crosssim.json").read_text())["core"]
    assert (core["rows_max"], core["cols_max"], core["weight_bits"]) == (64, 8, 8)
    assert core["style"] == "BITSLICED"
    assert core["bit_sliced"] == {"style": "BALANCED", "num_slices": 4}
    mapping = json.loads((folder / "aihwkit.json").read_text())["mapping"]
    assert mapping == {"max_input_size": 64, "max_output_size": 8}


def test_limits_where_one_fm_exceeds_the_rows(tmp_path):
    plan = plan_model(nn.Conv2d(3, 4, 7), (3, 7, 7), "16x16")
    layers = json.loads((export_limits(plan, tmp_path) / "layers.json").read_text())
    assert layers[""] == {"rows": 16, "cols": 4, "tiles": 10}  # 147 rows in one matrix


def test_aihwkit_takes_the_limits(plan, tmp_path):
    configs = pytest.importorskip("aihwkit.simulator.configs")
    limits = json.loads((export_limits(plan, tmp_path) / "aihwkit.json").read_text())
    mapping = type(configs.InferenceRPUConfig().mapping)(**limits["mapping"])
    assert mapping.max_input_size == 18


def test_onnx_computes_the_pruned_network(model, plan, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = export_onnx(plan, model, tmp_path / "pruned.onnx")
    image = torch.randn(1, 3, 8, 8)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image.numpy()})
    pruned = network().eval()
    pruned.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, weight in masked(model, plan).items():
            dict(pruned.named_modules())[name].weight.copy_(weight)
        torch.testing.assert_close(torch.from_numpy(found), pruned(image), rtol=1e-4, atol=1e-5)
    graph = onnx.load(str(path)).graph
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    assert ((weights["3.weight"] == 0) == (masked(model, plan)["3"] == 0).numpy()).all()
    assert b"site-packages" not in path.read_bytes()


@pytest.mark.slow
def test_pimcomp_node_list(model, plan, tmp_path):
    pytest.importorskip("onnxscript")
    data = json.loads(export_pimcomp(plan, model, tmp_path / "net.json").read_text())
    nodes = data["node_list"]
    assert [node["operation"] for node in nodes] == [
        "OP_INPUT", "OP_CONV", "OP_CONV", "OP_POOL", "OP_RESHAPE", "OP_FC",
    ]  # fmt: skip
    assert [node["index"] for node in nodes] == list(range(6))
    assert [node["provider_index"] for node in nodes] == [[], [0], [1], [2], [3], [4]]
    assert [node["consumer_index"] for node in nodes] == [[1], [2], [3], [4], [5], []]
    second = nodes[2]
    assert second["input_dim"] == [1, 8, 8, 8]
    assert second["output_dim"] == [1, 12, 4, 4]
    assert second["param"]["group"] == 2
    assert (second["param"]["stride_h"], second["param"]["pad_w1"]) == (2, 1)
    assert (second["with_act"], second["act_type"]) == (1, 0)
    assert data["reshape_info"]["input_dim"] == [1, 12, 2, 2]
    counted = {
        node["crossbars"]["name"]: len(node["crossbars"]["blocks"])
        for node in nodes
        if "crossbars" in node
    }
    assert counted == {layer.name: layer.compute_crossbars for layer in plan.layers}


class Tokens(nn.Module):
    """Linear layers over a sequence, with and without a bias, two of the same weights."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.alike = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(2))
        self.alike[1].load_state_dict(self.alike[0].state_dict())
        self.last = nn.Linear(30, 3)

    def forward(self, x):
        x = self.first(x).relu()
        for layer in self.alike:
            x = layer(x).relu()
        return self.last(x.flatten(1))


@pytest.mark.slow
def test_pimcomp_has_the_crossbars_of_layers_over_a_sequence(tmp_path):
    pytest.importorskip("onnxscript")
    model = Tokens()
    plan = plan_model(model, (5, 4), "4x4", "folded", "column", exclude=())
    masks = {layer.name: torch.ones(layer.mask_shape).bool() for layer in plan.layers}
    masks["alike.0"][:, 0] = False
    plan = plan.pruned(masks)
    nodes = json.loads(export_pimcomp(plan, model, tmp_path / "net.json").read_text())["node_list"]
    held = [(n["operation"], n["crossbars"]["name"]) for n in nodes if "crossbars" in n]
    assert held == [
        ("OP_MATMUL", "first"), ("OP_MATMUL", "alike.0"), ("OP_MATMUL", "alike.1"),
        ("OP_FC", "last"),
    ]  # fmt: skip


@pytest.mark.slow
def test_pimcomp_keeps_a_second_activation(tmp_path):
    pytest.importorskip("onnxscript")
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Sigmoid())
    path = export_pimcomp(plan_model(model, (2, 5, 5), "32x32"), model, tmp_path / "net.json")
    image, conv, sigmoid = json.loads(path.read_text())["node_list"]
    assert (image["operation"], sigmoid["operation"]) == ("OP_INPUT", "OP_SIGMOID")
    assert (conv["with_act"], conv["act_type"]) == (1, 0)
    assert sigmoid["provider"] == [conv["name"]]


@pytest.mark.slow
def test_pimcomp_refuses_unknown_operations(tmp_path):
    pytest.importorskip("onnxscript")
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    with pytest.raises(ModelError, match=r"does not know the operation (Gelu|Erf)"):
        export_pimcomp(plan_model(model, (4,), "4x4"), model, tmp_path / "net.json")


class Means(nn.Module):
    """A mean over the tokens of a sequence."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Linear(4, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.tokens(x).mean(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shape", "found"),
    [
        (Means(), (5, 4), r"ReduceMean\) turns \[1, 5, 6\] into \[1, 6\]"),
        (nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU()), (2, 8), r"Conv\) turns \[1, 2, 8\]"),
    ],
)
def test_pimcomp_refuses_what_is_not_an_image(tmp_path, model, shape, found):
    pytest.importorskip("onnxscript")
    plan = plan_model(model, shape, "8x8", exclude=())
    with pytest.raises(ModelError, match=found):
        export_pimcomp(plan, model, tmp_path / "net.json")


def test_a_missing_package_says_how_to_install_it():
    with pytest.raises(ModelError, match=r"pip install 'crosspruner\[export\]'"):
        needs("no_such_package_of_ours")
