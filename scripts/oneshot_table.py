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
from crosspruner.errors import BudgetError
from crosspruner.pruning.layer_order import REORDERS
from crosspruner.training import build_model, load_weights
from crosspruner.training.data import FolderData

SOLVERS = ("random", "magnitude", "lasso", "greedy", "lgd_rpp")
ROWS = (
    *((solver, False, "none", "uniform") for solver in SOLVERS),
    *((solver, True, "none", "uniform") for solver in SOLVERS),
    *((solver, True, "importance", "uniform") for solver in SOLVERS[1:]),
    *((solver, True, "tetris", "uniform") for solver in SOLVERS[1:]),
    ("lgd_rpp", True, "linear", "uniform"),
    ("lgd_rpp", True, "best", "uniform"),
    ("lgd_rpp", True, "none", "global"),
    ("lgd_rpp", True, "importance", "global"),
    ("lgd_rpp", True, "tetris", "global"),
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
@click.option("--seed", default=0, help="Of the solvers' draws, and of which images calibrate.")
@click.option("--grain", "grains", multiple=True, default=("crossbar", "column"))
@click.option("--solver", "solvers", multiple=True, default=SOLVERS)
@click.option("--reorder", "orders", multiple=True, default=REORDERS)
@click.option("--budget", "budgets", multiple=True, default=("uniform", "global"))
@click.option(
    "--bfloat16", is_flag=True, help="Test in bfloat16; masks and refits stay as they are."
)
def main(
    network: str,
    width: float,
    weights: Path,
    data: str,
    grains: tuple[str, ...],
    solvers: tuple[str, ...],
    orders: tuple[str, ...],
    budgets: tuple[str, ...],
    images: int,
    seed: int,
    bfloat16: bool,
    **how: object,
) -> None:
    module = FolderData(data, num_workers=0, calibration_seed=seed)
    module.setup()
    net = build_model(network, module.num_classes, module.image_size, width=width).eval()
    load_weights(net, weights)
    batches = [batch[0] for batch in module.calibration_batches(images)]
    print(f"dense: {accuracy(net, module.test_dataloader(), bfloat16):.2%}\n")
    print("| grain | solver | refit | reorder | budget | accuracy | saved | CPU s |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for grain in grains:
        for solver, refit, reorder, budget in ROWS:
            if solver not in solvers or reorder not in orders or budget not in budgets:
                continue
            start = time.process_time()
            row = f"| {grain} | {solver} | {'yes' if refit else 'no'} | {reorder} | {budget} "
            try:
                result = cp.prune(
                    *(net, batches),
                    grain=grain,
                    solver=solver,
                    refit=refit,
                    reorder=reorder,
                    budget=budget,
                    seed=seed,
                    **how,  # type: ignore[arg-type]
                )
            except BudgetError as error:
                print(f"{row}| cannot: {error} | | |", flush=True)
                continue
            spent = time.process_time() - start
            scored = accuracy(result.model, module.test_dataloader(), bfloat16)
            print(f"{row}| {scored:.2%} | {result.saved:.2%} | {spent:.0f} |", flush=True)
    kind = "bfloat16" if bfloat16 else "float32"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"\nseed {seed}; tested in {kind}; {versions}")


@torch.no_grad()
def accuracy(net: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], bfloat16: bool) -> float:
    """Share of images that the network gets right, in float32 or with bfloat16 autocast."""
    right = images = 0
    for inputs, labels in loader:
        # Channels last: a quarter less time on a CPU.
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = net(inputs.contiguous(memory_format=torch.channels_last))
        right += int((logits.argmax(1) == labels).sum())
        images += len(labels)
    return right / images


if __name__ == "__main__":
    main()
