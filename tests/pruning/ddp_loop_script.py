"""A plain loop in one process, or in two under torchrun; each leaves its masks.

Run by test_several_processes.py.
"""

# ruff: noqa: I001
import faulthandler
import os
import sys

import crosspruner as cp  # (before others: mends torchvision where it does not fit torch)
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

STEPS, BATCH = 24, 16


def main(folder, solver):
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 12),
        nn.ReLU(),
        nn.Linear(12, 3),
    )
    model = nn.parallel.DistributedDataParallel(network) if processes > 1 else network
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruning = cp.attach(
        *(model, optimizer, "18x8", "folded", "crossbar", 0.5),
        total_steps=STEPS,
        input_shape=(2, 4, 4),
        schedule=cp.PruningSchedule(1, 2, 1, warmup=0.2, hold=0.1),
        settings=cp.StepSettings(solver, moment_every=1, refresh_every=2, moment_rows=64),
    )
    images = torch.randn(STEPS * BATCH, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = images.mean(dim=(1, 2, 3)).gt(0).long()
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        optimizer.zero_grad()
        cross_entropy(model(x[rank::processes]), y[rank::processes]).backward()
        optimizer.step()
        pruning.step()
    assert pruning.frozen
    left = {"masks": pruning.masks, "weights": network.state_dict()}
    torch.save(left, os.path.join(folder, f"{rank}.pt"))
    if processes > 1:
        dist.barrier()  # neither leaves while the other is still in a collective
        dist.destroy_process_group()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(200, exit=True)  # says where, should it hang
    main(*sys.argv[1:])
