"""What the orders of input FMs do to single layers, and what the network makes of it.

python scripts/layer_orders.py --weights DENSE/pruned/weights.safetensors --data DIR

Each layer is pruned alone, with its input FMs in each order: the error of its own outputs on the
calibration images, and that of the network's logits on test images.
"""

from pathlib import Path

import click
import torch
from torch import Tensor, nn

import crosspruner as cp
from crosspruner.errors import BudgetError
from crosspruner.hardware import plan_model
from crosspruner.training import build_model, load_weights
from crosspruner.training.data import FolderData

ORDERS = ("none", "importance", "tetris")


@click.command(help=__doc__)
@click.option("--network", default="vgg8")
@click.option("--width", default=0.5, help="Of its feature maps.")
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--data", required=True, type=click.Path(exists=True), help="An image folder.")
@click.option("--crossbar", default="256x256")
@click.option("--mapping", default="liang2018")
@click.option("--grain", default="column", type=click.Choice(["crossbar", "column"]))
@click.option("--ratio", default=0.6, help="Share of the layer's crossbars to remove.")
@click.option("--images", default=2048, help="Test images.")
def main(
    network: str,
    width: float,
    weights: Path,
    data: str,
    crossbar: str,
    mapping: str,
    grain: str,
    ratio: float,
    images: int,
) -> None:
    module = FolderData(data, num_workers=0)
    module.setup()
    net = build_model(network, module.num_classes, module.image_size, width=width).eval()
    load_weights(net, weights)
    batches = [batch[0] for batch in module.calibration_batches(512)]
    test = torch.cat([batch[0] for batch in module.test_dataloader()])[:images]
    expected = logits(net, test)
    plan = plan_model(net, tuple(test.shape[1:]), crossbar, mapping, grain)
    print("| layer | P | order | error of the layer | of the logits | least, most read group |")
    print("|---|---|---|---|---|---|")
    for layer in plan.layers[1:-1]:
        share = ratio * layer.compute_crossbars / plan.compute_crossbars
        for order in ORDERS:
            where = (net, batches, crossbar, mapping, grain, share)
            try:
                result = cp.prune(*where, reorder=order, include=[layer.name])
            except BudgetError:
                break  # too few input groups to go without this many
            error = (logits(result.model, test) - expected).square().sum(1).mean()
            read = result.masks[layer.name].double().mean(0)
            cells = (
                *(layer.name, str(layer.input_groups), order, f"{result.errors[layer.name]:.4f}"),
                *(f"{error:.3f}", f"{read.min():.2f}, {read.max():.2f}"),
            )
            print("| " + " | ".join(cells) + " |", flush=True)


@torch.no_grad()
def logits(net: nn.Module, images: Tensor) -> Tensor:
    """(N, classes) what a network answers."""
    return torch.cat([net(part) for part in images.split(256)])


if __name__ == "__main__":
    main()
