"""Two processes (gloo, on the CPU) prune as one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("ddp_script.py")


def run(folder, processes, *command):
    """What each process left."""
    folder.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RANK", "LOCAL_", "WORLD_"))}
    environment = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)],
        env=environment,
        check=True,
        timeout=300,
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


def fit(folder, processes, *given):
    """Lightning starts the processes."""
    return run(folder, processes, SCRIPT, folder, processes, *given)


@pytest.mark.parametrize(
    ("solver", "objective", "relax", "exact"),
    [
        # Choices that follow from weights and gradients alone are the same to the last block.
        ("magnitude", "reconstruction", "0.1", False),  # RPP draws: the same in both processes
        ("magnitude", "reconstruction", "0", True),
        ("lgd_rpp", "loss", "0", True),
        # Curvature is measured on patches that are drawn from each process's own images.
        ("lgd_rpp", "reconstruction", "0.1", False),
    ],
)
def test_both_hold_the_same_masks_and_the_plan_of_one_process_at_the_same_global_batch(
    tmp_path, solver, objective, relax, exact
):
    first, second = fit(tmp_path / "two", 2, solver, objective, relax)
    (alone,) = fit(tmp_path / "one", 1, solver, objective, relax)
    assert [first["rank"], second["rank"], first["processes"]] == [0, 1, 2]
    assert first["masks"].keys() == second["masks"].keys() == alone["masks"].keys()
    for name, mask in first["masks"].items():
        assert torch.equal(mask, second["masks"][name])
        assert not bool(mask.all())
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    assert first["crossbars"] == second["crossbars"] == alone["crossbars"]
    if exact:
        for name, mask in alone["masks"].items():
            assert torch.equal(mask, first["masks"][name]), name


def torchrun(folder, processes, script, *given):
    """torchrun starts the processes."""
    command = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    return run(folder, processes, *command, SCRIPT.with_name(script), folder, *given)


def loop(folder, processes, solver):
    """A plain loop."""
    return torchrun(folder, processes, "ddp_loop_script.py", solver)


def test_processes_that_see_other_images_prune_at_once_alike(tmp_path):
    kinds = ("lgd_rpp", "magnitude", "both")
    first, second = torchrun(tmp_path / "two", 2, "ddp_layerwise_script.py", *kinds)
    for kind in kinds:
        for name, mask in first[kind]["masks"].items():
            assert torch.equal(mask, second[kind]["masks"][name]), (kind, name)
        assert not all(bool(mask.all()) for mask in first[kind]["masks"].values())
        for name, weight in first[kind]["weights"].items():
            assert torch.equal(weight, second[kind]["weights"][name]), (kind, name)


@pytest.mark.parametrize(("solver", "exact"), [("taylor", True), ("lgd_rpp", False)])
def test_a_plain_loop_under_ddp_prunes_as_one_process_does(tmp_path, solver, exact):
    first, second = loop(tmp_path / "two", 2, solver)
    (alone,) = loop(tmp_path / "one", 1, solver)
    for name, mask in first["masks"].items():
        assert torch.equal(mask, second["masks"][name])
        assert mask.sum() == alone["masks"][name].sum()
        assert not bool(mask.all())
        if exact:
            assert torch.equal(mask, alone["masks"][name]), name
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
