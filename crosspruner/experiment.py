"""One run, from a composed configuration to a run folder.

configuration -> data -> network -> plan -> fit (dense, prune, fine-tune) -> test, on the device as
well -> run folder
"""

import json
import logging
import math
import pickle
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from crosspruner.assemble import (
    fix_randomness,
    initial_weights,
    is_sweep,
    loggers_of,
    module_of,
    network_of,
    open_data,
    pruning_of,
    quieten_lightning,
    trainer_of,
)
from crosspruner.config import RunSettings, run_settings
from crosspruner.errors import ConfigError
from crosspruner.hardware import Plan
from crosspruner.job import (
    has_console,
    is_first_process,
    join_processes,
    own_folder,
    process_left_as_found,
    quieten_worker,
    recorded,
    share_cores,
)
from crosspruner.judging import check_device, judge, judge_on_device
from crosspruner.pruning.device_noise import DeviceNoise
from crosspruner.pruning.pruning_callback import PruningCallback
from crosspruner.pruning.schedule import Phase
from crosspruner.pruning.snapshot import Snapshot
from crosspruner.reporting.config_tree import config_tree
from crosspruner.reporting.console import print_crossbars
from crosspruner.reporting.layers import layer_table
from crosspruner.reporting.page import write_run_report
from crosspruner.reporting.results import headline, write_results
from crosspruner.reporting.tracked_results import log_results
from crosspruner.training import load_weights
from crosspruner.training.average import WeightAverage
from crosspruner.training.distillation import Distillation

log = logging.getLogger(__name__)


def run_or_stop(config: DictConfig, traceback: bool) -> float:
    """`run` for the command line: a failing single run ends with one line on stderr.

    A job of a sweep that fails leaves its message in its folder and its log, and returns NaN: the
    others go on, whatever the launcher, and the end of the sweep tells of all that failed.

    Args:
        config: what hydra composed.
        traceback: raise instead; in a sweep, show the traceback.
    """
    try:
        return run(config)
    except Exception as error:
        if is_sweep() and (Path(config.paths.output_dir) / "FAILED").exists():
            if traceback:
                log.exception("%s failed", config.paths.output_dir)
            return math.nan
        if traceback or is_sweep():
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        sys.exit(f"error: {text}")


def run(config: DictConfig) -> float:
    """Run one job.

    Args:
        config: what hydra composed for it.

    Returns:
        Test accuracy of the pruned network, 0 to 1.

    Raises:
        CrossprunerError: anything that the user can mend. The run folder keeps the message in
            `FAILED`, the last checkpoint and the metrics so far.
    """
    folder = Path(config.paths.output_dir)
    join_processes()
    quieten_worker()
    with own_folder(folder), process_left_as_found():
        if (folder / "DONE").exists():
            log.info("%s is done: nothing to do", folder)
            return float(json.loads((folder / "summary.json").read_text())["accuracy"])
        with recorded(folder):
            accuracy = _run(config, run_settings(config), folder)
        if is_first_process():
            log.info("report: %s", write_run_report(folder))
    return accuracy


def _run(config: DictConfig, settings: RunSettings, folder: Path) -> float:
    started = time.monotonic()
    resumed_from = checkpoint_of(settings, folder)
    if is_sweep() and "LocalLauncher" in HydraConfig.get().launcher._target_:
        hydra = HydraConfig.get()
        jobs = hydra.sweeper.get("max_batch_size") or hydra.sweeper.get("at_once") or 1
        share_cores(jobs * hydra.launcher.tasks_per_node)
    (folder / "config_tree.txt").write_text(config_tree(config))
    quieten_lightning()
    fix_randomness(settings.seed)
    data = open_data(config)
    network = network_of(config, data)
    weights = initial_weights(config, settings)
    if weights is not None:
        log.info("%s: %s", weights, load_weights(network, weights))

    pruning = pruning_of(settings)
    input_shape = (data.in_channels, *data.image_size)
    plan = pruning.prepare(network, input_shape)
    log.info("%s\n%s", _intention(plan, pruning), plan.table())
    check_device(settings.device, plan, network)

    module = module_of(config, settings, network, data)
    kept = folder / "checkpoints"
    ema = settings.training.ema
    average = None if ema is None else WeightAverage(ema, pruning)
    averaged = None if average is None else average.state_of
    snapshots = (
        Snapshot(kept / "dense.safetensors", pruning, Phase.PRUNE, averaged),
        Snapshot(kept / "pruned.safetensors", pruning, Phase.FINETUNE, averaged),
    )
    labels = _labels(config, settings, pruning.ratio)
    with loggers_of(config, folder, labels) as (loggers, board):
        # The dense network is kept before, the pruned one after a procedure that prunes between
        # steps; what is left of it is averaged, and noise goes into that.
        ours: list[pl.Callback] = [snapshots[0], pruning, snapshots[1]]
        if settings.distill > 0:
            ours.insert(1, Distillation(snapshots[0]))
        if average is not None:
            ours.append(average)
        if settings.device.train:
            ours.append(DeviceNoise(settings.device, pruning, settings.seed))
        trainer = trainer_of(config, pruning, ours, loggers)
        trainer.fit(module, datamodule=data, ckpt_path=resumed_from)
        outcome = judge(trainer, module, data, pruning, snapshots)
        if trainer.is_global_zero:
            outcome = replace(outcome, units=settings.cost)
            outcome = judge_on_device(outcome, network, data, settings.device)
            seconds = time.monotonic() - started
            summary = write_results(folder, network, outcome, labels, seconds)
            if board is not None:
                log_results(board, folder)
    if has_console():
        print_crossbars(layer_table(outcome.plan), pruning.ratio)
    if trainer.is_global_zero:
        log.info("%s", headline(summary))
    return outcome.accuracy


def _intention(plan: Plan, pruning: PruningCallback) -> str:
    """What is about to happen, in one line, before anything is trained."""
    gone = sum(
        (layout.blocks - pruning.blocks[name]) * layout.crossbars_per_block
        for name, layout in pruning.layouts.items()
    )
    total = plan.compute_crossbars
    return (
        f"to remove {gone:,} of {total:,} compute crossbars ({gone / total:.2%}, "
        f"{pruning.ratio:.2%} asked for) from {len(pruning.layouts)} of {len(plan.layers)} layers"
    )


def checkpoint_of(settings: RunSettings, folder: Path) -> str | None:
    """The checkpoint to go on from: the one given, or what this very run left when it stopped.

    Args:
        settings: ckpt_path is the one given.
        folder: of the run.

    Raises:
        ConfigError: what is given is no file, or no Lightning checkpoint.
    """
    if settings.ckpt_path is None:
        own = folder / "checkpoints" / "last.ckpt"
        return str(own) if own.is_file() else None
    if not Path(settings.ckpt_path).is_file():
        raise ConfigError(
            f"ckpt_path={settings.ckpt_path} is not a file: give the last.ckpt of a run, "
            "logs/train/runs/STAMP/checkpoints/last.ckpt"
        )
    if settings.ckpt_path.endswith(".safetensors"):
        raise ConfigError(
            f"ckpt_path={settings.ckpt_path} holds weights only: type "
            f"model.weights={settings.ckpt_path}"
        )
    try:  # mapped, as only what it is made of is looked at
        content = torch.load(settings.ckpt_path, "cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        content = None
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise ConfigError(
            f"ckpt_path={settings.ckpt_path} is no Lightning checkpoint, a damaged one, or one "
            "that holds more than weights and plain values: give the last.ckpt of a run, or, for a "
            "file of weights, model.weights=FILE"
        )
    return settings.ckpt_path


def _labels(config: DictConfig, settings: RunSettings, ratio: float) -> dict[str, Any]:
    """What a summary says of how the run was made."""
    choices = HydraConfig.get().runtime.choices
    return {
        "model": config.model.name,
        "data": choices["data"],
        "crossbar": str(settings.crossbar),
        "mapping": choices["mapping"],
        "grain": settings.grain.name,
        "ratio": ratio,
        "seed": settings.seed,
        "solver": settings.solver.name,
        "procedure": settings.procedure.name,
        "budget": settings.budget.name,
        "reorder": settings.reorder,
        **({"method": choices["method"]} if choices.get("method") else {}),
    }
