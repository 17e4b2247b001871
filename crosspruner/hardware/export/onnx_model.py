"""The pruned network as ONNX, checked in onnxruntime before it is handed out."""

import warnings
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from crosspruner.errors import ModelError
from crosspruner.hardware.attention import layer_module
from crosspruner.hardware.export.packages import needs
from crosspruner.hardware.plan import Plan
from crosspruner.hardware.weight_form import read_matrix, write_matrix


def export_onnx(
    plan: Plan, model: nn.Module, path: str | Path, tolerance: float = 1e-4, seed: int = 0
) -> Path:
    """Writes the pruned model for a batch of one image and compares onnxruntime's result.

    Batch normalisation is folded into the convolutions; pruned weights stay exactly zero. Weights
    keep their names (`features.0.weight`).

    Args:
        plan: its masks are applied to the written weights.
        model: float32, left as it was.
        path: of the .onnx file; its folder is created if need be.
        tolerance: largest allowed difference, as a fraction of the largest output.
        seed: of the random image on which the results are compared.

    Returns:
        The path.

    Raises:
        ModelError: onnx, onnxscript or onnxruntime is missing, the model cannot be exported, or
            onnxruntime computes something else.
    """
    onnx, _, runtime = needs("onnx", "onnxscript", "onnxruntime")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pruned = pruned_copy(plan, model).float().cpu().eval()
    image = torch.randn(
        1, *plan.input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about its own insides
            torch.onnx.export(
                pruned,
                (image,),
                str(path),
                input_names=["image"],
                output_names=["logits"],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be exported to ONNX: {type(error).__name__}: {error}"
        ) from error
    _strip(onnx, path)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image.numpy()})
    with torch.no_grad():
        expected = pruned(image)
    gap = float((torch.from_numpy(found) - expected).abs().max())
    if gap > tolerance * max(float(expected.abs().max()), 1e-12):
        raise ModelError(
            f"{path}: onnxruntime differs from PyTorch by {gap:.2g}, more than {tolerance:g} of "
            "the largest output."
        )
    return path


def pruned_copy(plan: Plan, model: nn.Module) -> nn.Module:
    """A copy of the model whose pruned weights are zero."""
    copy = deepcopy(model)
    with torch.no_grad():
        for layer in plan.layers:
            module = layer_module(copy, layer.name)
            if layer.mask is not None and layer.weight_form != "computed":
                matrix = read_matrix(module)
                write_matrix(module, matrix * layer.kept.to(matrix.device)[:, :, None, None])
    return copy


def _strip(onnx: ModuleType, path: Path) -> None:
    """Checks the file and drops what the exporter notes of the machine: paths, stack traces."""
    written = onnx.load(str(path))
    onnx.checker.check_model(written)
    for item in (written, written.graph, *written.graph.node, *written.graph.value_info):
        del item.metadata_props[:]
    for node in written.graph.node:
        node.doc_string = ""
    onnx.save(written, str(path))
