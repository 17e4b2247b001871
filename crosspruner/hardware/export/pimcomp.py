"""The pruned network as the node list that PIMCOMP-NN's backend reads."""

import json
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from crosspruner.errors import ModelError
from crosspruner.hardware.attention import layer_module, layer_name
from crosspruner.hardware.export.onnx_model import export_onnx, pruned_copy
from crosspruner.hardware.export.packages import needs
from crosspruner.hardware.plan import Plan
from crosspruner.hardware.weight_form import read_matrix

OPERATIONS = {
    "Conv": "OP_CONV",
    "Gemm": "OP_FC",
    "MatMul": "OP_MATMUL",
    "Relu": "OP_RELU",
    "Tanh": "OP_TANH",
    "Sigmoid": "OP_SIGMOID",
    "Softmax": "OP_SOFTMAX",
    "MaxPool": "OP_POOL",
    "AveragePool": "OP_POOL",
    "GlobalAveragePool": "OP_POOL",
    "ReduceMean": "OP_POOL",
    "Flatten": "OP_FLATTEN",
    "Reshape": "OP_RESHAPE",
    "Concat": "OP_CONCAT",
    "Transpose": "OP_TRANSPOSE",
    "Add": "OP_ELTWISE",
    "Sub": "OP_ELTWISE",
    "Mul": "OP_ELTWISE",
    "Clip": "OP_CLIP",
    "Squeeze": "OP_SQUEEZE",
    "Unsqueeze": "OP_UNSQUEEZE",
}
ACTIVATIONS = ("OP_RELU", "OP_TANH", "OP_SIGMOID")


def export_pimcomp(plan: Plan, model: nn.Module, path: str | Path) -> Path:
    """Writes the pruned network's graph, each planned layer with its crossbars.

    `node_list` has one entry per operation (names, shapes, neighbours, `param`), activations merged
    into the layer before, batch normalisation folded. Beyond what PIMCOMP-NN reads, a planned layer
    has `crossbars`: the plan's entry of that layer, with `input_groups` and `blocks`.

    Args:
        plan: made for the model.
        model: float32, left as it was.
        path: of the .json file.

    Returns:
        The path.

    Raises:
        ModelError: an ONNX package is missing, or the graph has an operation that PIMCOMP-NN does
            not know: a convolution of anything but images, a mean over anything but all of them.
    """
    (onnx,) = needs("onnx")
    with tempfile.TemporaryDirectory() as folder:
        file = export_onnx(plan, model, Path(folder) / "model.onnx")
        graph = onnx.shape_inference.infer_shapes(onnx.load(str(file))).graph
    planned = {layer["name"]: layer for layer in plan.to_dict()["layers"]}
    nodes = _nodes(graph, onnx, planned, _owners(graph, onnx, plan, model))
    _merge_activations(nodes)
    _link(nodes)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"node_list": nodes, "reshape_info": _reshape_info(nodes)}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _owners(graph: Any, onnx: Any, plan: Plan, model: nn.Module) -> dict[str, str]:
    """{name of a weight in the graph: its layer}.

    The exporter keeps the names of weights, except of those that it transposes for a product: they
    are known by their values, equal ones by the order of their use.
    """
    used = [n.input[1] for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    values = {t.name: t for t in graph.initializer}
    weights = [name for name in dict.fromkeys(used) if name in values]
    names = {layer.name for layer in plan.layers}
    owners = {weight: layer_name(weight) for weight in weights if layer_name(weight) in names}
    pruned = pruned_copy(plan, model).float().cpu()
    transposed = {
        layer.name: read_matrix(layer_module(pruned, layer.name)).flatten(1).T.numpy()
        for layer in plan.layers
        if layer.kind == "linear" and layer.name not in owners.values()
    }
    for weight in (name for name in weights if name not in owners):
        value = onnx.numpy_helper.to_array(values[weight])
        for name, matrix in transposed.items():
            if np.array_equal(value, matrix):
                owners[weight] = name
                del transposed[name]
                break
    return owners


def _nodes(
    graph: Any, onnx: Any, planned: dict[str, Any], owners: dict[str, str]
) -> list[dict[str, Any]]:
    """The operations in the graph's order, the input first."""
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    (image,) = graph.input
    nodes = [
        {
            "name": image.name,
            "operation": "OP_INPUT",
            "provider": [],
            "output_dim": shapes[image.name],
        }
    ]
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        if node.op_type not in OPERATIONS:
            known = ", ".join(sorted(OPERATIONS))
            raise ModelError(
                f"PIMCOMP-NN does not know the operation {node.op_type}, only {known}."
            )
        provider = [name for name in node.input if name in {n["name"] for n in nodes}]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        entry = {
            "name": node.output[0],
            "operation": OPERATIONS[node.op_type],
            "provider": provider,
            "input_dim": shapes[provider[0]],
            "output_dim": shapes[node.output[0]],
        }
        if param := _param(node, attributes, entry):
            entry["param"] = param
        if entry["operation"] in ("OP_CONV", "OP_FC"):
            entry |= {"with_bn": 0, "with_act": 0, "act_type": -1}
            entry |= {"with_clip": 0, "clip_min": -10000000, "clip_max": 10000000}
        if len(node.input) > 1 and node.input[1] in owners:
            entry["crossbars"] = planned[owners[node.input[1]]]
        nodes.append(entry)
    return nodes


def _param(node: Any, attributes: dict[str, Any], entry: dict[str, Any]) -> dict[str, int]:
    before, after = entry["input_dim"], entry["output_dim"]
    if node.op_type == "Gemm":
        return {
            "num_input": before[1],
            "num_output": after[1],
            "with_bias": int(len(node.input) > 2),
        }
    if node.op_type in ("Add", "Sub", "Mul"):
        return {"eletype": 4 if node.op_type == "Sub" else 2}
    if entry["operation"] not in ("OP_CONV", "OP_POOL"):
        return {}
    whole = node.op_type in ("GlobalAveragePool", "ReduceMean")
    if len(before) != 4 or (whole and (after[:2] != before[:2] or prod(after[2:]) != 1)):
        raise ModelError(
            f"PIMCOMP-NN knows convolutions of images and means of whole feature maps only: "
            f"{entry['name']} ({node.op_type}) turns {before} into {after}."
        )
    kernel = before[2:] if whole else attributes["kernel_shape"]
    stride = attributes.get("strides", [1, 1])
    pads = attributes.get("pads", [0, 0, 0, 0])
    param = {
        "kernel_h": kernel[0],
        "kernel_w": kernel[1],
        "stride_h": stride[0],
        "stride_w": stride[1],
        "pad_h0": pads[0],
        "pad_h1": pads[2],
        "pad_w0": pads[1],
        "pad_w1": pads[3],
    }
    if entry["operation"] == "OP_POOL":
        return param | {"pool_method": int(node.op_type != "MaxPool"), "global": int(whole)}
    dilation = attributes.get("dilations", [1, 1])
    return param | {
        "dilation_h": dilation[0],
        "dilation_w": dilation[1],
        "group": attributes.get("group", 1),
        "input_channel": before[1],
        "output_channel": after[1],
        "with_bias": int(len(node.input) > 2),
    }


def _merge_activations(nodes: list[dict[str, Any]]) -> None:
    """Lets a layer compute the activation that is its only consumer."""
    by_name = {node["name"]: node for node in nodes}
    for node in [n for n in nodes if n["operation"] in ACTIVATIONS]:
        before = by_name[node["provider"][0]]
        users = [n for n in nodes if before["name"] in n["provider"]]
        # A layer has room for one: a second activation in a row stays a node of its own.
        if before.get("with_act") == 0 and len(users) == 1:
            before |= {"with_act": 1, "act_type": ACTIVATIONS.index(node["operation"])}
            for user in nodes:
                user["provider"] = [
                    before["name"] if name == node["name"] else name for name in user["provider"]
                ]
            nodes.remove(node)


def _link(nodes: list[dict[str, Any]]) -> None:
    """Numbers the nodes and writes down who feeds whom."""
    index = {node["name"]: i for i, node in enumerate(nodes)}
    for i, node in enumerate(nodes):
        consumer = [n["name"] for n in nodes if node["name"] in n["provider"]]
        node |= {"index": i, "new_node_index": i, "bitwidth": 16}
        for role, names in (("provider", node["provider"]), ("consumer", consumer)):
            node |= {
                role: names,
                f"{role}_num": len(names),
                f"{role}_index": [index[name] for name in names],
            }
        for side in ("input_dim", "output_dim"):
            if side in node:
                node[f"{side}_num"] = len(node[side])


def _reshape_info(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """How feature maps become the vector of the first linear layer."""
    for node in nodes:
        if node["operation"] in ("OP_FLATTEN", "OP_RESHAPE") and len(node["input_dim"]) == 4:
            user = nodes[node["consumer_index"][0]]
            if user["operation"] == "OP_FC":
                return {
                    "name": user["name"],
                    "input_dim": node["input_dim"],
                    "output_dim": node["output_dim"],
                }
    return {}
