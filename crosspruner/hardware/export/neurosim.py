"""Files for DNN+NeuroSim V1.3 and V1.4: NetWork.csv, weights, and the inputs of one image."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosspruner.errors import PlanError
from crosspruner.hardware.export.masked import Seen, observe, sample
from crosspruner.hardware.plan import Plan


def export_neurosim(
    plan: Plan,
    model: nn.Module,
    folder: str | Path,
    image: Tensor | None = None,
    input_bits: int = 8,
) -> Path:
    """Writes the pruned network in the form that NeuroSim's own PyTorch wrapper writes.

    `NetWork.csv` has a line per unrolled kernel matrix: input rows, input columns, input FMs,
    kernel rows, kernel columns, output FMs, followed by pooling (0 or 1), stride. A grouped or
    depthwise layer gives one line per group. `weight_<layer>.csv` holds that matrix, one row per
    (input FM, kernel row, kernel column), scaled to -1..1. With an image, `input_<layer>.csv` holds
    its inputs bit by bit and `trace_command.sh` the call of NeuroSim, to be run in the folder.

    NeuroSim lays matrices out by itself, dense and by im2col: it sees pruned weights as zeros, and
    not the packing.

    Args:
        plan: made for the model; its crossbar gives weight bits and rows.
        model: left as it was.
        folder: written to, created if need be.
        image: (1, *input_shape), for the inputs.
        input_bits: bits per input, the sign included.

    Returns:
        Path of NetWork.csv.

    Raises:
        PlanError: a layer has a dilation, two different strides, several depths (Conv3d), or is
            called several times, which NeuroSim does not know.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines, trace = [], []
    for seen in observe(plan, model, sample(plan, model) if image is None else image):
        matrices = _matrices(seen)
        for name, weight in matrices.items():
            lines.append(",".join(map(str, _line(seen, weight))))
            scaled = weight / weight.abs().max().clamp(min=torch.finfo(weight.dtype).tiny)
            path = folder / f"weight_{name}.csv"
            path.write_bytes(_fixed_point(scaled.flatten(1).T.cpu().numpy()))
            trace += [path.name]
            if image is not None:
                group = list(matrices).index(name)
                inputs = _bits(_inputs(seen, group, len(matrices)), input_bits)
                path = folder / f"input_{name}.csv"
                path.write_bytes(_digits(inputs.cpu().numpy()))
                trace += [path.name]
    network = folder / "NetWork.csv"
    network.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if image is not None:
        bits, rows = plan.crossbar.weight_bits, plan.crossbar.rows
        call = f"${{NEUROSIM:-./main}} NetWork.csv {bits} {input_bits} {rows} {rows}"
        (folder / "trace_command.sh").write_text(f"{call} {' '.join(trace)}\n", encoding="utf-8")
    return network


def _matrices(seen: Seen) -> dict[str, Tensor]:
    """{name: (outputs, inputs, kh, kw)}, one per conv group."""
    groups = seen.layer.conv_groups
    name = seen.layer.name or "layer"
    if groups == 1:
        return {name: seen.weight}
    return {f"{name}.{i}": part for i, part in enumerate(seen.weight.chunk(groups))}


def _line(seen: Seen, weight: Tensor) -> list[int]:
    geometry = seen.layer.geometry
    if geometry.dilation != (1, 1) or geometry.stride[0] != geometry.stride[1]:
        raise PlanError(
            f"{seen.layer.name}: dilation {geometry.dilation}, stride {geometry.stride}. NeuroSim "
            "knows no dilation and one stride for both directions: this layer cannot be exported."
        )
    # A linear layer runs over its whole sequence in one call, a Conv3d over its depths.
    if seen.calls > 1 or (seen.layer.kind != "linear" and geometry.calls > 1):
        raise PlanError(
            f"{seen.layer.name}: it runs {max(seen.calls, geometry.calls)} times per image (its "
            "module is called again, or a Conv3d has several depths). NeuroSim knows one map per "
            "layer: this layer cannot be exported."
        )
    high, wide = geometry.in_size
    if seen.layer.kind == "linear":
        high = geometry.calls
    outputs, inputs, kh, kw = weight.shape
    return [high, wide, inputs, kh, kw, outputs, int(seen.pooled), geometry.stride[0]]


def _inputs(seen: Seen, group: int, groups: int) -> Tensor:
    """(rows, positions) of one conv group: what drives its matrix, position after position."""
    x = seen.padded.chunk(groups, dim=1)[group]
    if seen.layer.kind == "linear":
        return x.movedim(1, 0).flatten(1)
    geometry = seen.layer.geometry
    return F.unfold(x[:1], geometry.kernel, geometry.dilation, 0, geometry.stride)[0]


def _bits(x: Tensor, bits: int) -> Tensor:
    """(rows, positions) -> (rows, positions * bits) of 0 and 1: two's complement, sign first."""
    steps = 2 ** (bits - 1)
    scale = x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)
    whole = (x / scale * (steps - 1)).round().long() % (2 * steps)
    places = torch.arange(bits - 1, -1, -1, device=x.device)
    return (whole[..., None] >> places & 1).flatten(1)


def _digits(values: np.ndarray) -> bytes:
    """CSV of single digits, (rows, columns). numpy.savetxt takes minutes for a network's inputs."""
    text = np.full((values.shape[0], 2 * values.shape[1]), ord(","), dtype=np.uint8)
    text[:, ::2] = ord("0") + values
    text[:, -1] = ord("\n")
    return text.tobytes()


def _fixed_point(values: np.ndarray) -> bytes:
    """CSV of numbers in -1..1 with five decimals, (rows, columns): " 0.12345,-1.00000"."""
    whole = np.rint(values * 1e5).astype(np.int64)
    text = np.full((*values.shape, 9), ord(","), dtype=np.uint8)
    text[..., 0] = np.where(whole < 0, ord("-"), ord(" "))
    text[..., 2] = ord(".")
    for place, worth in zip((1, 3, 4, 5, 6, 7), (10**5, 10**4, 1000, 100, 10, 1), strict=True):
        text[..., place] = ord("0") + abs(whole) // worth % 10
    text[:, -1, 8] = ord("\n")
    return text.tobytes()
