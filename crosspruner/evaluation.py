"""A finished run, judged again from what its folder holds: the same figures, or the differences.

run folder -> its configuration -> data, network -> saved weights -> test accuracy, crossbars
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import nn

from crosspruner.assemble import network_of, open_data, quieten_lightning
from crosspruner.config import RunSettings, run_settings
from crosspruner.errors import ConfigError, RunFolderError
from crosspruner.hardware import Plan, plan_model
from crosspruner.hardware.attention import layer_module
from crosspruner.hardware.effective import weight_name
from crosspruner.pruning.masked_layer import MaskedLayer
from crosspruner.sparsity import GroupLayout
from crosspruner.training import Classifier

FIGURES = (
    "dense_accuracy",
    "accuracy",
    "compute_crossbars_dense",
    "compute_crossbars",
    "total_crossbars_dense",
    "total_crossbars",
    "phases",
)
"""Fields of `summary.json` that an evaluation repeats."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of a run, as noted and as found again."""

    noted: dict[str, Any]
    found: dict[str, Any]
    """Without `dense_accuracy` where the run keeps no dense weights."""

    @property
    def differences(self) -> list[str]:
        """One line for each figure that differs; accuracies are compared to the last bit."""
        return [
            f"{key}: {self.noted.get(key)} noted, {value} found"
            for key, value in self.found.items()
            if self.noted.get(key) != value
        ]

    def table(self) -> str:
        """Both, side by side."""
        width = max(map(len, FIGURES))
        lines = [f"{'':{width}}  {'noted':>12}  {'found':>12}"]
        for key in FIGURES:
            noted, found = (_shown(values.get(key)) for values in (self.noted, self.found))
            lines.append(f"{key:{width}}  {noted:>12}  {found:>12}")
        return "\n".join(lines)


def evaluate_run(folder: Path, overrides: Sequence[str] = ()) -> Evaluation:
    """Load a run again and repeat its test figures.

    The crossbars are counted anew: the network is planned again, packed by the saved masks, and the
    saved weights have to be zero wherever the masks are.

    Args:
        folder: a finished run folder.
        overrides: changes of its configuration such as `data.dir=/new/place` or
            `trainer.accelerator=cpu`.

    Returns:
        The figures, noted and found.

    Raises:
        RunFolderError: the folder is no finished run's, or its weights contradict its masks.
        ConfigError, DataError, ModelError: the configuration no longer holds here.
    """
    for name in (".hydra/config.yaml", "summary.json", "pruned/weights.safetensors"):
        if not (folder / name).is_file():
            raise RunFolderError(
                f"run_dir={folder} lacks {name}: give the folder of a finished run, "
                "logs/train/runs/STAMP"
            )
    config = load_config(folder, overrides)
    config.model.pretrained = False  # every weight is loaded from the folder, none from a hub
    settings = run_settings(config)
    quieten_lightning()
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    data = open_data(config)
    module = Classifier(
        network_of(config, data),
        optimizer=torch.optim.SGD,
        channels_last=settings.training.channels_last,
        seed=settings.seed,
        compile=settings.training.compile,
        compile_backend=settings.training.compile_backend,
    )
    trainer = _trainer(config)

    def accuracy(weights: Path) -> float:
        module.net.load_state_dict(load_file(weights))
        return float(trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"])

    found: dict[str, Any] = {}
    pruned, dense = folder / "pruned/weights.safetensors", folder / "checkpoints/dense.safetensors"
    found["accuracy"] = accuracy(pruned)
    noted = json.loads((folder / "summary.json").read_text())
    if noted["ratio"] == 0:
        found["dense_accuracy"] = found["accuracy"]
    elif dense.is_file():
        found["dense_accuracy"] = accuracy(dense)
    plan = _packed(folder, settings, module.net, (data.in_channels, *data.image_size))
    found |= {
        "compute_crossbars_dense": plan.dense.compute_crossbars,
        "compute_crossbars": plan.compute_crossbars,
        "total_crossbars_dense": plan.dense.total_crossbars,
        "total_crossbars": plan.total_crossbars,
        "phases": plan.phases,
    }
    return Evaluation(noted, found)


def load_config(folder: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that a run was composed of.

    Args:
        folder: the run folder.
        overrides: values to change, `key=value`.

    Raises:
        ConfigError: an override names no value of the configuration.
    """
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert isinstance(config, DictConfig)
    # What hydra filled in while the run was going on.
    config.paths.output_dir = str(folder)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key not in _keys(config):
            raise ConfigError(
                f"{override.input_line}: {key} is no value of the run's configuration; "
                f"{folder}/config_tree.txt shows them"
            )
        OmegaConf.update(config, key, override.value())
    return config


def _keys(config: DictConfig, prefix: str = "") -> set[str]:
    """Dotted names of all values; a group, which holds values, is none."""
    keys: set[str] = set()
    for name in config:
        node, key = config._get_node(name), f"{prefix}{name!s}"
        keys |= _keys(node, f"{key}.") if isinstance(node, DictConfig) and len(node) else {key}
    return keys


def _trainer(config: DictConfig) -> pl.Trainer:
    """One that tests as the run's did, and leaves no trace; on one device, for the same figures."""
    alone = {"devices": 1, "num_nodes": 1, "strategy": "auto", "max_epochs": 1}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return instantiate(OmegaConf.merge(config.trainer, alone, quiet))


def _packed(
    folder: Path, settings: RunSettings, network: nn.Module, input_shape: tuple[int, int, int]
) -> Plan:
    """The plan that the saved masks leave, of a network that holds the pruned weights or any."""
    saved = Plan.load(folder / "pruned" / "mapping.json")
    masks = {k: m.bool() for k, m in load_file(folder / "pruned" / "masks.safetensors").items()}
    plan = plan_model(
        network,
        input_shape,
        settings.crossbar,
        settings.mapping,
        settings.grain.name,
        settings.include,
        settings.exclude,
    ).pruned(
        masks,
        settings.grain.name,
        {layer.name: order for layer in saved.layers if (order := layer.input_order) is not None},
        {layer.name: order for layer in saved.layers if (order := layer.output_order) is not None},
    )
    weights = load_file(folder / "pruned" / "weights.safetensors")
    for name, mask in masks.items():
        weight = weights[weight_name(name, weights)]
        layout = GroupLayout.of(plan.layer(name), settings.grain.name)
        kept = MaskedLayer(layer_module(network, name), layout).spread(mask).to(weight.device)
        left = int((weight[~kept.expand_as(weight)] != 0).sum())
        if left:
            raise RunFolderError(
                f"run_dir={folder}: {left} weights of {name} are not zero where its mask prunes "
                "them: weights and masks are not of one run"
            )
    return plan


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4%}"
    return "not known" if value is None else f"{value:,}"
