"""The tables of docs/solver.md: the mask solvers against each other and against the exact optimum.

python scripts/ablate_solver.py exact          200 problems solved by enumeration
python scripts/ablate_solver.py large          P = 64, 256, 512 against greedy with swaps
python scripts/ablate_solver.py bound          how far below greedy with swaps any mask can be
                                               (needs cvxpy: pip install 'crosspruner[bounds]')
python scripts/ablate_solver.py layers         the layers of a trained network, fixed and refitted
python scripts/ablate_solver.py trades         whole layers on a budget of crossbars, and what rows
                                               gain by trading groups
"""

import itertools
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click
import numpy as np
import sklearn
import torch
from sklearn.linear_model import lasso_path
from torch import Tensor, nn

from crosspruner.hardware import MappingSpec, plan_model
from crosspruner.pruning.layer_problem import layer_problem
from crosspruner.pruning.mask_choice import choose_layer_mask
from crosspruner.pruning.moment_sums import MomentSums
from crosspruner.pruning.walk import Stop, run_to, stops
from crosspruner.solver import LayerProblem, choose_mask, exhaustive, lgd_rpp, share_out
from crosspruner.solver.greedy import greedy_elimination
from crosspruner.solver.judge import judge_of
from crosspruner.solver.lgd import largest_eigenvalue
from crosspruner.solver.rpp import rpp
from crosspruner.solver.swap import gram_loss, swap_descent
from crosspruner.sparsity import GroupLayout
from crosspruner.training import build_model, load_weights
from crosspruner.training.data import FolderData

KIN_8 = MappingSpec("folded", kin=8, kout=4)

Solver = Callable[[Tensor, int], Tensor]
"""gram (B, P, P), keep -> mask (B, P)."""


@click.group(help=__doc__)
def main() -> None:
    """Collects the subcommands."""


def _greedy(gram: Tensor, keep: int, swaps: bool = True) -> Tensor:
    mask = greedy_elimination(gram, gram.sum(2), keep)
    return swap_descent(gram, gram.sum(2), mask) if swaps else mask


def _largest(gram: Tensor, keep: int) -> Tensor:
    """Magnitude on a bare Gram matrix: the energy of each group's own output."""
    return rpp(gram.diagonal(dim1=1, dim2=2), keep)


def _sklearn_lasso(gram: Tensor, keep: int, linear: Tensor | None = None) -> Tensor:
    """The first `keep` groups to enter scikit-learn's lasso path."""
    linear = gram.sum(2) if linear is None else linear
    masks = torch.zeros_like(linear, dtype=torch.bool)
    for row, (g, h) in enumerate(zip(gram.numpy(), linear.numpy(), strict=True)):
        # Any X, y with X'X = G and X'y = h pose the problem; scikit-learn wants them given.
        values, vectors = np.linalg.eigh(g)
        root = np.sqrt(values.clip(values.max() * 1e-12))
        x, y = (vectors * root).T, (vectors.T @ h) / root
        top = np.abs(h).max() / len(y)
        path = lasso_path(x, y, alphas=top * np.geomspace(1, 1e-5, 100))[1]
        entered = np.where((path != 0).any(1), (path != 0).argmax(1), path.shape[1])
        # Of groups that enter at the same penalty the heavier one goes first.
        order = np.lexsort((-np.abs(path[:, -1]), entered))
        masks[row, torch.from_numpy(order[:keep].copy())] = True
    return masks


def _sparse_state(gram: Tensor, keep: int, restarts: int = 8, steps: int = 100) -> Tensor:
    """lgd_rpp without its dense state: every step starts from the projected point."""
    generator = torch.Generator().manual_seed(0)
    problem = gram.repeat_interleave(restarts, 0)
    scale = largest_eigenvalue(problem).unsqueeze(1)
    state = torch.rand(problem.shape[:2], generator=generator, dtype=gram.dtype)
    best, best_loss = (
        torch.zeros_like(state, dtype=torch.bool),
        state.new_full((len(state),), 1e300),
    )
    for step in range(steps + 1):
        mask = rpp(state, keep, 0.5 * max(0.0, 1 - step / (0.8 * steps)), generator)
        loss = gram_loss(problem, problem.sum(2), mask)
        best = torch.where((loss < best_loss).unsqueeze(1), mask, best)
        best_loss = torch.minimum(loss, best_loss)
        beta = mask.to(gram.dtype)
        slope = (problem @ beta.unsqueeze(2)).squeeze(2) - problem.sum(2)
        state = beta - 2 * slope / scale
    first = best_loss.view(-1, restarts).argmin(1)
    return best.view(-1, restarts, gram.shape[1])[torch.arange(len(gram)), first]


GRAM_SOLVERS: dict[str, Solver] = {
    "random": lambda gram, keep: lgd_rpp(gram, keep, steps=0, restarts=1, swaps=False),
    "largest energy": _largest,
    "lasso (scikit-learn)": _sklearn_lasso,
    "greedy": lambda gram, keep: _greedy(gram, keep, swaps=False),
    "greedy + swaps": _greedy,
    "LGD, plain projection, 1 start": lambda gram, keep: lgd_rpp(
        gram, keep, relax=0.0, restarts=1, swaps=False
    ),
    "LGD + RPP, 1 start": lambda gram, keep: lgd_rpp(gram, keep, restarts=1, swaps=False),
    "lgd_rpp without dense state or swaps": _sparse_state,
    "lgd_rpp without swaps": lambda gram, keep: lgd_rpp(gram, keep, swaps=False),
    "lgd_rpp without relaxation": lambda gram, keep: lgd_rpp(gram, keep, relax=0.0),
    "lgd_rpp without LGD steps": lambda gram, keep: lgd_rpp(gram, keep, steps=0),
    "lgd_rpp without kicks": lambda gram, keep: lgd_rpp(gram, keep, kicks=0),
    "**lgd_rpp**": lgd_rpp,
    "**lgd_rpp, 32 restarts**": lambda gram, keep: lgd_rpp(gram, keep, restarts=32),
}


def random_grams(kind: str, batch: int, groups: int, seed: int) -> Tensor:
    """Gram matrices (batch, groups, groups) of partial outputs with a correlation structure."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if kind == "independent":
        outputs = normal(batch, 2 * groups, groups)
    elif kind == "half as many samples":
        outputs = normal(batch, max(2, groups // 2), groups)
    elif kind == "two common factors":
        common = normal(batch, 4 * groups, 2) @ normal(batch, 2, groups)
        outputs = normal(batch, 4 * groups, groups) + 2 * common
    elif kind == "uneven energy":
        outputs = normal(batch, 2 * groups, groups) * normal(batch, 1, groups).exp()
    else:
        outputs = normal(batch, 4 * groups, groups)
        for group in range(1, groups):
            outputs[:, :, group] = 0.8 * outputs[:, :, group - 1] + 0.6 * outputs[:, :, group]
    return outputs.mT @ outputs / outputs.shape[1]


KINDS = (
    "independent",
    "half as many samples",
    "two common factors",
    "uneven energy",
    "neighbours alike",
)


def enumerate_optimum(gram: Tensor, keep: int) -> Tensor:
    """Least loss over all masks, its constant left out. (B,)"""
    groups = gram.shape[1]
    supports = torch.tensor(list(itertools.combinations(range(groups), keep)))
    best = gram.new_full((len(gram),), torch.inf)
    for part in supports.split(20_000):
        masks = torch.zeros(len(part), groups, dtype=gram.dtype).scatter_(1, part, 1.0)
        losses = ((masks @ gram) * masks).sum(2) - 2 * gram.sum(2) @ masks.T
        best = torch.minimum(best, losses.amin(1))
    return best


@main.command()
@click.option("--weights", help="Weights of a trained VGG8: its layers give 40 of the problems.")
@click.option("--width", default=0.5, help="Width of that VGG8.")
@click.option("--data", help="Image folder to calibrate it on.")
def exact(weights: str | None, width: float, data: str | None) -> None:
    """Excess of the loss over the exact optimum, problems of P = 12 to 20.

    By itself lgd_rpp solves problems this small by trying all masks; here it has to search.
    """
    exhaustive.MAX_WORK = 0.0
    sizes = [(12, 6), (14, 7), (16, 4), (16, 8), (18, 9), (20, 6), (20, 8), (20, 10)]
    per_size = 4 if weights else 5
    problems: dict[str, list[tuple[Tensor, int]]] = {
        kind: [
            (random_grams(kind, per_size, groups, 1000 + groups + keep), keep)
            for groups, keep in sizes
        ]
        for kind in KINDS
    }
    if weights:
        layers = trained_layers("vgg8", width, weights, data, "crossbar", groups=16)
        real = next(problem.gram for _, problem in layers)
        problems["layer of VGG8"] = [(real[:14], 8), (real[:13], 4), (real[13:26], 12)]
    optimum = {
        kind: [enumerate_optimum(gram, keep) + gram.sum((1, 2)) for gram, keep in listed]
        for kind, listed in problems.items()
    }
    total = sum(len(gram) for listed in problems.values() for gram, _ in listed)
    print(f"{total} problems: excess over the optimum, median / worst / share solved exactly\n")
    rows = []
    for name, solve in GRAM_SOLVERS.items():
        cells = []
        every = []
        for kind, listed in problems.items():
            excess = torch.cat(
                [
                    (gram_loss(gram, gram.sum(2), solve(gram, keep)) + gram.sum((1, 2))) / best - 1
                    for (gram, keep), best in zip(listed, optimum[kind], strict=True)
                ]
            )
            every.append(excess)
            cells.append(_summary(excess))
        rows.append([name, *cells, _summary(torch.cat(every))])
    _print_table(["solver", *problems, "all"], rows)


def _summary(excess: Tensor) -> str:
    share = (excess < 1e-7).double().mean()
    return f"{excess.median():.1%} / {excess.max():.1%} / {share:.1%}"


@main.command()
@click.option("--batch", default=8, help="Problems per size and structure.")
@click.option("--sizes", default="64,256,512", help="Values of P.")
def large(batch: int, sizes: str) -> None:
    """Loss relative to greedy + swaps, half of the groups kept: median (worst)."""
    names = ["greedy", "LGD + RPP, 1 start", "lgd_rpp without swaps", "lgd_rpp without kicks"]
    names += ["lgd_rpp without relaxation", "**lgd_rpp**"]
    rows = []
    for groups in map(int, sizes.split(",")):
        for kind in KINDS:
            gram = random_grams(kind, batch, groups, groups)
            constant = gram.sum((1, 2))
            rival = gram_loss(gram, gram.sum(2), _greedy(gram, groups // 2)) + constant
            cells = []
            for name in names:
                start = time.process_time()
                mask = GRAM_SOLVERS[name](gram, groups // 2)
                spent = time.process_time() - start
                change = (gram_loss(gram, gram.sum(2), mask) + constant) / rival - 1
                cells.append(f"{change.median():+.1%} ({change.max():+.1%})")
            rows.append([str(groups), kind, *cells, f"{spent / batch:.2f}"])
    _print_table(["P", "structure", *names, "CPU s per problem"], rows)


@main.command()
@click.option("--batch", default=8, help="Problems per size and structure.")
@click.option("--sizes", default="64", help="Values of P.")
def bound(batch: int, sizes: str) -> None:
    """Loss relative to greedy + swaps, half of the groups kept: median (least, most)."""

    def cell(change: Tensor) -> str:
        return f"{change.median():+.1%} ({change.min():+.1%}, {change.max():+.1%})"

    rows = []
    for groups in map(int, sizes.split(",")):
        everything = []
        for kind in KINDS:
            gram = random_grams(kind, batch, groups, groups)
            constant = gram.sum((1, 2))
            rival, ours = (
                gram_loss(gram, gram.sum(2), mask) + constant
                for mask in (_greedy(gram, groups // 2), lgd_rpp(gram, groups // 2))
            )
            least = torch.tensor([_least_possible(g, groups // 2) for g in gram.numpy()])
            everything.append((ours / rival - 1, least / rival - 1))
            rows.append([str(groups), kind, *map(cell, everything[-1])])
        rows.append(
            [str(groups), "all", *(cell(torch.cat(c)) for c in zip(*everything, strict=True))]
        )
    _print_table(["P", "structure", "lgd_rpp", "no mask is below"], rows)


def _least_possible(gram: np.ndarray, keep: int) -> float:
    """A loss that no mask is below: a semidefinite relaxation of what is pruned, r' G r.

    R stands for r r': of a mask its diagonal is r, its rows sum to r times the number of groups
    pruned, no entry is negative, and R - r r' is positive semidefinite. Solved to five digits.
    """
    import cvxpy

    groups, scale = len(gram), np.trace(gram) / len(gram)
    lifted = cvxpy.Variable((groups + 1, groups + 1), PSD=True)
    square, pruned, number = lifted[1:, 1:], lifted[0, 1:], groups - keep
    of_a_mask = [
        lifted[0, 0] == 1,
        cvxpy.diag(square) == pruned,
        cvxpy.sum(square, axis=1) == number * pruned,
        cvxpy.sum(pruned) == number,
        lifted >= 0,
    ]
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.trace(gram / scale @ square)), of_a_mask)
    return float(problem.solve(solver=cvxpy.SCS, eps=1e-5, max_iters=20_000)) * scale


@dataclass
class Run:
    """A solver of the layer table."""

    solver: str
    refit: bool = False
    sklearn: bool = False

    def __call__(self, problem: LayerProblem, keep: int) -> Tensor:
        if self.sklearn:
            return _sklearn_lasso(problem.gram, keep, problem.linear)
        return choose_mask(problem, keep, self.solver, refit=self.refit)


LAYER_SOLVERS = {
    "random": Run("random"),
    "magnitude": Run("magnitude"),
    "taylor": Run("taylor"),
    "lasso (scikit-learn)": Run("lasso", sklearn=True),
    "lasso": Run("lasso"),
    "greedy": Run("greedy"),
    "lgd_hard": Run("lgd_hard"),
    "**lgd_rpp**": Run("lgd_rpp"),
    "obs_group": Run("obs_group"),
    "greedy, for the refit": Run("greedy", refit=True),
    "**lgd_rpp, for the refit**": Run("lgd_rpp", refit=True),
}


@main.command()
@click.option("--network", default="vgg8", help="Name of the network.")
@click.option("--width", default=0.5, help="Its width.")
@click.option("--weights", required=True, help="Its trained weights.")
@click.option("--data", required=True, help="Image folder to calibrate on.")
@click.option("--grain", default="crossbar", type=click.Choice(["crossbar", "column"]))
@click.option("--outputs", default=16, help="Output groups (FMs) per layer, evenly spaced.")
@click.option("--only", default="", help="Only layers whose name contains this.")
def layers(
    network: str, width: float, weights: str, data: str, grain: str, outputs: int, only: str
) -> None:
    """Output error at Kin 8, Kout 4: weights fixed -> refitted, mean over the layers."""
    ratios = (0.25, 0.5, 0.75)
    errors: dict[tuple[str, float], list[tuple[float, float]]] = {}
    seconds = dict.fromkeys(LAYER_SOLVERS, 0.0)
    ratio_rows = []
    for layout, problem in trained_layers(network, width, weights, data, grain):
        name = layout.name
        if only not in name:
            continue
        chosen = torch.linspace(0, problem.num_problems - 1, min(outputs, problem.num_problems))
        part = _rows(problem, chosen.long().unique())
        cells = []
        for removed in ratios:
            keep = problem.num_groups - round(problem.num_groups * removed)
            refitted = {}
            for label, run in LAYER_SOLVERS.items():
                start = time.process_time()
                mask = run(part, keep)
                seconds[label] += time.process_time() - start
                fixed, refitted[label] = _errors(part, mask)
                errors.setdefault((label, removed), []).append((fixed, refitted[label]))
            rival = refitted["obs_group"]
            cells.append(f"{refitted['**lgd_rpp, for the refit**'] / rival:.4f}")
        ratio_rows.append([name, str(problem.num_groups), *cells])
        print(f"{name} done", file=sys.stderr, flush=True)
    rows = []
    for label in LAYER_SOLVERS:
        cells = []
        for removed in ratios:
            fixed, refitted_error = np.mean(errors[label, removed], axis=0)
            cells.append(f"{fixed:.4f} -> {refitted_error:.4f}")
        rows.append([label, *cells, f"{seconds[label]:.1f}"])
    _print_table(["solver", *(f"{r:.0%} removed" for r in ratios), "CPU s"], rows)
    print("\nRefitted error of lgd_rpp (for the refit) over that of obs_group, by layer\n")
    _print_table(["layer", "P", *(f"{r:.0%} removed" for r in ratios)], ratio_rows)


@main.command()
@click.option("--network", default="vgg8", help="Name of the network.")
@click.option("--width", default=0.5, help="Its width.")
@click.option("--weights", required=True, help="Its trained weights.")
@click.option("--data", required=True, help="Image folder to calibrate on.")
@click.option("--grain", default="column", type=click.Choice(["crossbar", "column"]))
@click.option("--mapping", default="semifolded")
@click.option("--kin", type=int, help="Input FMs per crossbar; default: of the mapping.")
@click.option("--kout", type=int, help="Output FMs per crossbar; default: of the mapping.")
@click.option("--crossbar", default="256x256")
@click.option("--ratio", default=0.6, help="Share of each layer's blocks to remove.")
def trades(
    network: str,
    width: float,
    weights: str,
    data: str,
    grain: str,
    mapping: str,
    kin: int | None,
    kout: int | None,
    crossbar: str,
    ratio: float,
) -> None:
    """Refitted output error of whole layers, masks of lgd_rpp."""
    table = []
    blocks_of = (MappingSpec(mapping, kin=kin, kout=kout), crossbar)
    for layout, problem in trained_layers(network, width, weights, data, grain, *blocks_of):
        refit = problem.refit
        assert refit is not None
        blocks = max(layout.fewest_blocks, layout.blocks - round(ratio * layout.blocks))
        judge = judge_of(problem)
        columns = blocks * (layout.kout if grain == "column" else 1)
        keep = share_out(judge.removal_costs, min(columns, problem.gram[:, 0].numel()))
        by_row = choose_mask(problem, keep, "lgd_rpp", refit=True)
        alone, traded = (
            choose_layer_mask(problem, blocks, layout, "lgd_rpp", judge=judge, trade=trade)
            for trade in (False, True)
        )
        errors = [float(refit.solve(mask)[1].sum()) for mask in (by_row, alone, traded)]
        errors = [error / float(refit.constant.sum()) for error in errors]
        cells = [*(f"{error:.4f}" for error in errors), f"{errors[2] / errors[1] - 1:+.1%}"]
        table.append([layout.name, str(problem.num_groups), str(layout.kout), *cells])
        print(f"{layout.name} done", file=sys.stderr, flush=True)
    _print_table(
        ["layer", "P", "Kout", "each row", "on the budget", "after trades", "change"], table
    )


def _rows(problem: LayerProblem, rows: Tensor) -> LayerProblem:
    """Some of a layer's problems."""
    assert problem.energy is not None
    assert problem.norms is not None
    assert problem.refit is not None
    return LayerProblem(
        problem.gram[rows],
        problem.linear[rows],
        problem.energy[rows],
        problem.norms[rows],
        refit=problem.refit.rows(rows),
    )


def _errors(problem: LayerProblem, mask: Tensor) -> tuple[float, float]:
    """Relative output error with fixed and with refitted weights."""
    assert problem.energy is not None
    assert problem.refit is not None
    fixed = (problem.relative_loss(mask) * problem.energy).sum() / problem.energy.sum()
    refitted = problem.refit.solve(mask)[1].sum() / problem.refit.constant.sum()
    return float(fixed), float(refitted)


def trained_layers(
    network: str,
    width: float,
    weights: str,
    data: str | None,
    grain: str,
    spec: MappingSpec = KIN_8,
    crossbar: str = "512x512",
    groups: int = 0,
) -> Iterator[tuple[GroupLayout, LayerProblem]]:
    """The prunable convolutions of a trained network on 512 training images.

    Args:
        groups: only layers of this P; 0 = all of two and more.
    """
    module = FolderData(data or "", batch_size=128, num_workers=0)
    module.setup()
    net = build_model(network, module.num_classes, module.image_size, width=width).eval()
    load_weights(net, weights)
    images = torch.cat(
        [batch[0] for _, batch in zip(range(4), module.val_dataloader(), strict=False)]
    )
    plan = plan_model(net, tuple(images.shape[1:]), crossbar, spec, grain)
    layouts = {
        layer.name: GroupLayout.of(layer, grain)
        for layer in plan.layers
        if layer.input_groups > 1 and layer.kind == "conv" and groups in (0, layer.input_groups)
    }
    for stop in stops(net, images[:2], {name: [name] for name in layouts}):
        if not stop.is_norm:
            yield _trained_layer(net, stop, layouts[stop.name], images)


def _trained_layer(
    net: nn.Module, stop: Stop, layout: GroupLayout, images: Tensor
) -> tuple[GroupLayout, LayerProblem]:
    module = stop.modules[0]
    assert isinstance(module, nn.Conv2d)
    sums = MomentSums(module, layout, positions=128)
    bias = 0.0 if module.bias is None else module.bias.detach().view(-1, 1, 1)
    for batch in images.split(64):
        run_to(net, batch, stop, lambda _, x, y: sums.update(x, y - bias))
    moments = sums.average().centred()
    scale = None
    if stop.norm is not None:
        norm = net.get_submodule(stop.norm)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        scale = (norm.weight * (norm.running_var + norm.eps).rsqrt()).detach().double()
    return layout, layer_problem(moments, module.weight, scale)


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    for cells in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(cells) + " |", flush=True)
    print(
        f"\nSeeds as in the script; torch {torch.__version__}, scikit-learn {sklearn.__version__},"
        f" Python {platform.python_version()}, {torch.get_num_threads()} thread(s).\n"
    )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
