"""Accuracy right after pruning, before fine-tuning: solvers, refit, reorder, budgets compared.

python scripts/oneshot_table.py --weights DENSE/pruned/weights.safetensors --data DIR
"""

import platform
import time
from collections.abc import Iterable
from pathlib import Path

import click
import torch
from torch import Tensor, nn

import crosspruner as cp
from crosspruner.training import build_model, load_weights
from crosspruner.training.data import FolderData

ROWS = (
    ("magnitude", False, "none", "uniform"),
    ("lgd_rpp", False, "none", "uniform"),
    ("random", True, "none", "uniform"),
    ("magnitude", True, "none", "uniform"),
    ("lgd_rpp", True, "none", "uniform"),
    ("lgd_rpp", True, "importance", "uniform"),
    ("lgd_rpp", True, "tetris", "uniform"),
    ("lgd_rpp", True, "none", "global"),
)
"""Solver, refit, reorder, budget."""


@click.command(help=__doc__)
@click.option("--network", default="vgg8")
@click.option("--width", default=0.5, help="Of its feature maps.")
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--data", required=True, type=click.Path(exists=True), help="An image folder.")
@click.option("--crossbar", default="256x256")
@click.option("--mapping", default="liang2018")
@click.option("--kin", type=int, help="Input FMs per crossbar; default: of the mapping.")
@click.option("--kout", type=int, help="Output FMs per crossbar; default: of the mapping.")
@click.option("--ratio", default=0.72)
@click.option("--images", default=512, help="Calibration images.")
@click.option("--grain", "grains", multiple=True, default=("crossbar", "column"))
def main(
    network: str,
    width: float,
    weights: Path,
    data: str,
    grains: tuple[str, ...],
    images: int,
    **how: object,
) -> None:
    module = FolderData(data, num_workers=0)
    module.setup()
    net = build_model(network, module.num_classes, module.image_size, width=width).eval()
    load_weights(net, weights)
    batches = [batch[0] for batch in module.calibration_batches(images)]
    print(f"dense: {accuracy(net, module.test_dataloader()):.2%}\n")
    print("| grain | solver | refit | reorder | budget | accuracy | saved | CPU s |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for grain in grains:
        for solver, refit, reorder, budget in ROWS:
            start = time.process_time()
            result = cp.prune(
                *(net, batches),
                grain=grain,
                solver=solver,
                refit=refit,
                reorder=reorder,
                budget=budget,
                **how,  # type: ignore[arg-type]
            )
            spent = time.process_time() - start
            scored = accuracy(result.model, module.test_dataloader())
            print(
                f"| {grain} | {solver} | {'yes' if refit else 'no'} | {reorder} | {budget} "
                f"| {scored:.2%} | {result.saved:.2%} | {spent:.0f} |",
                flush=True,
            )
    print(f"\nseed 0; torch {torch.__version__}, Python {platform.python_version()}")


@torch.no_grad()
def accuracy(net: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of images that the network gets right."""
    right = images = 0
    for inputs, labels in loader:
        right += int((net(inputs).argmax(1) == labels).sum())
        images += len(labels)
    return right / images


if __name__ == "__main__":
    main()
