"""What crosspruner costs and how its figures compare, measured on this machine.

python scripts/benchmark.py mapping            crossbars and phases of the three mappings, and the
                                               time that planning, packing and simulating take
python scripts/benchmark.py solver             seconds to choose the masks of VGG16, and how many
                                               times longer scikit-learn's lasso takes
python scripts/benchmark.py layerwise          the whole layer-wise pass against the plain forward
                                               passes that it needs
"""

import itertools
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from sklearn.linear_model import lasso_path
from torch import nn

from crosspruner import prune
from crosspruner.hardware import Plan, plan_model, simulate
from crosspruner.solver import lgd_rpp
from crosspruner.training import build_model


@click.group(help=__doc__)
def main() -> None:
    """Collects the subcommands."""


@main.command()
@click.option("--quick", is_flag=True, help="Ratios only, without the timings.")
def mapping(quick: bool) -> None:
    """Ratios between the mappings (SemiMap reports 10-36 and 23-462), then costs."""
    print(table(RATIO_COLUMNS, ratio_rows()))
    if not quick:
        print(table(COST_COLUMNS, cost_rows()))
        print(table(SIMULATION_COLUMNS, simulation_rows()))


@main.command()
def solver() -> None:
    """All inner layers of VGG16 at column grain on 256x256, half of the groups removed."""
    print(table(SOLVER_COLUMNS, solver_rows()))


@main.command()
@click.option("--images", default=512, help="Calibration images of 32x32.")
@click.option("--network", "networks", multiple=True, default=("vgg8", "vgg16"))
@click.option("--grain", "grains", multiple=True, default=("crossbar", "column"))
def layerwise(images: int, networks: tuple[str, ...], grains: tuple[str, ...]) -> None:
    """Moments, masks, refit and batch norm of untrained networks on 256x256, half removed."""
    for line in lines(LAYERWISE_COLUMNS, layerwise_rows(images, networks, grains)):
        print(line, flush=True)  # each takes minutes


def lenet() -> nn.Module:
    """LeNet-5 for 28x28 images."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def zoo(name: str, size: int, family: str = "crosspruner") -> Callable[[], nn.Module]:
    """A constructor of one of our networks, or of torchvision's."""
    classes = 1000 if size > 64 else 10
    return lambda: build_model(name, classes, (size, size), family=family)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "LeNet, 28x28": (lenet, (1, 28, 28)),
    "VGG8, 32x32": (zoo("vgg8", 32), (3, 32, 32)),
    "VGG16, 32x32": (zoo("vgg16", 32), (3, 32, 32)),
    "ResNet18, 32x32": (zoo("resnet18", 32), (3, 32, 32)),
    "AlexNet, 224x224": (zoo("alexnet", 224, "torchvision"), (3, 224, 224)),
    "VGG16, 224x224": (zoo("vgg16", 224), (3, 224, 224)),
    "ResNet18, 224x224": (zoo("resnet18", 224), (3, 224, 224)),
}

RATIO_COLUMNS = (
    "network",
    "crossbar",
    "folded",
    "semi-folded",
    "unfolded",
    "unfolded / semi-folded",
    "convolutions alone",
    "folded / semi-folded phases",
)


def ratio_rows(crossbars: tuple[str, ...] = ("128x128", "256x256")) -> Iterator[tuple[Any, ...]]:
    """Crossbars of the three mappings and SemiMap's two ratios, per network and crossbar."""
    for name, (build, shape) in NETWORKS.items():
        with torch.device("meta"):
            model = build()
        for crossbar in crossbars:
            folded, semi, unfolded = (
                plan_model(model, shape, crossbar, kind)
                for kind in ("folded", "semifolded", "unfolded")
            )
            yield (
                name,
                crossbar,
                f"{folded.compute_crossbars:,}",
                f"{semi.compute_crossbars:,}",
                f"{unfolded.compute_crossbars:,}",
                f"{unfolded.compute_crossbars / semi.compute_crossbars:.1f}",
                f"{convolutions(unfolded) / convolutions(semi):.1f}",
                f"{folded.phases / semi.phases:.1f}",
            )


def convolutions(plan: Plan) -> int:
    """Compute crossbars of the convolutions."""
    return sum(layer.compute_crossbars for layer in plan.layers if layer.kind == "conv")


COST_COLUMNS = (
    "network",
    "crossbar",
    "crossbars, dense",
    "left",
    "plan, s",
    "pack, s",
    "save, s",
    "file, MB",
    "pack, us per block",
    "peak memory, MB",
)


def cost_rows() -> Iterator[tuple[Any, ...]]:
    """Seconds to plan, to pack half of the columns (random mask), and to save."""
    for name, size in (("vgg16", 224), ("resnet50", 224)):
        with torch.device("meta"):
            model = build_model(name, 1000, (size, size))
        plan_model(model, (3, size, size), "512x512")  # imports and caches
        for side in (512, 256, 128, 64, 32):
            crossbar = f"{side}x{side}"
            plan, planning = timed(plan_model, model, (3, size, size), crossbar, grain="column")
            generator = torch.Generator().manual_seed(0)
            masks = {
                layer.name: torch.rand(layer.mask_shape, generator=generator) < 0.5
                for layer in plan.layers
                if layer.prunable
            }
            pruned = plan.pruned(masks)
            blocks, packing = timed(count_blocks, pruned)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "mapping.json"
                _, saving = timed(pruned.save, path)
                megabytes = path.stat().st_size / 1e6
            yield (
                f"{name}, {size}x{size}",
                crossbar,
                f"{plan.compute_crossbars:,}",
                f"{pruned.compute_crossbars:,}",
                f"{planning:.3f}",
                f"{packing:.3f}",
                f"{saving:.3f}",
                f"{megabytes:.1f}",
                f"{1e6 * packing / blocks:.1f}",
                f"{peak_memory():.0f}",
            )


SIMULATION_COLUMNS = ("network", "crossbar", "mapping", "crossbars", "dtype", "s per image")


def simulation_rows() -> Iterator[tuple[Any, ...]]:
    """Seconds to run one CIFAR image through VGG16, crossbar by crossbar."""
    for kind in ("folded", "semifolded", "liang2018"):
        for dtype in (torch.float32, torch.float64):
            model = build_model("vgg16", 10).to(dtype)
            plan = plan_model(model, (3, 32, 32), "256x256", kind)
            image = torch.randn(1, 3, 32, 32, dtype=dtype)
            _, seconds = timed(simulate, plan, model, image)
            yield (
                "vgg16, 32x32",
                "256x256",
                kind,
                f"{plan.compute_crossbars:,}",
                str(dtype).removeprefix("torch."),
                f"{seconds:.2f}",
            )


SOLVER_COLUMNS = ("layer", "problems", "P", "lgd_rpp, s", "lasso, s", "lasso / lgd_rpp")

LASSO_SAMPLE = 16
"""Problems per layer that scikit-learn solves; its time for all follows by proportion."""


def solver_rows() -> Iterator[tuple[Any, ...]]:
    """Seconds to choose one mask per output on random correlated partial outputs."""
    plan = plan_model(build_model("vgg16", 10), (3, 32, 32), "256x256", grain="column")
    totals = [0.0, 0.0]
    for layer in plan.layers[1:-1]:
        problems, groups = layer.geometry.out_channels, layer.input_groups
        generator = torch.Generator().manual_seed(groups)
        outputs = torch.randn(problems, 2 * groups, groups, generator=generator).double()
        outputs += torch.randn(problems, 2 * groups, 1, generator=generator)
        gram = outputs.mT @ outputs
        _, ours = timed(lgd_rpp, gram, groups // 2)
        sample = outputs[:LASSO_SAMPLE].numpy()
        _, theirs = timed(lambda of: [lasso_path(x, x.sum(1)) for x in of], sample)
        theirs *= problems / len(sample)
        totals = [totals[0] + ours, totals[1] + theirs]
        yield layer.name, problems, groups, f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.0f}"
    yield "all", "", "", f"{totals[0]:.1f}", f"{totals[1]:.1f}", f"{totals[1] / totals[0]:.0f}"


LAYERWISE_COLUMNS = (
    "network", "grain", "refit", "forward passes, s", "layer-wise pass, s", "excess, s",
)  # fmt: skip


def layerwise_rows(
    images: int, networks: Iterable[str], grains: Iterable[str]
) -> Iterator[tuple[Any, ...]]:
    """Seconds of `cp.prune`, those of a dense and a pruned forward pass, and what is above 3 times
    these."""
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(images, 3, 32, 32, generator=generator).split(64)
    for name, grain, refit in itertools.product(networks, grains, (False, True)):
        net = build_model(name, 10).eval()
        result, spent = timed(
            prune, net, batches, crossbar="256x256", grain=grain, ratio=0.5, refit=refit
        )
        passes = sum(timed(forward_all, model, batches)[1] for model in (net, result.model))
        excess = spent - 3 * passes
        yield name, grain, refit, f"{passes:.1f}", f"{spent:.1f}", f"{excess:.1f}"


@torch.no_grad()
def forward_all(net: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """One plain forward pass over all images."""
    for batch in batches:
        net(batch)


def count_blocks(plan: Plan) -> int:
    """Packs every layer; the physical blocks of all."""
    return sum(len(layer.packing) for layer in plan.layers)


def timed(work: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """What `work` returns, and the seconds it took."""
    started = time.perf_counter()
    result = work(*args, **kwargs)
    return result, time.perf_counter() - started


def peak_memory() -> float:
    """The most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def table(columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """A Markdown table, numbers to the right."""
    return "\n".join(lines(columns, rows)) + "\n"


def lines(columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """The lines of a Markdown table, one by one."""
    rule = tuple("---" if i < 2 else "---:" for i in range(len(columns)))
    for row in itertools.chain([columns, rule], rows):
        yield "| " + " | ".join(map(str, row)) + " |"


if __name__ == "__main__":
    main()
