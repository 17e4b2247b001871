"""How many crossbars a network takes, without data or training.

python scripts/map_report.py model=resnet18 crossbar=32x32,64x64,128x128,256x256,512x512
python scripts/map_report.py model=vgg16 mapping=folded,semifolded image_size=224 out=report
python scripts/map_report.py model=timm model.name=convnext_tiny crossbar.rows=100 crossbar.cols=60

Keys and groups: conf/map_report.yaml. Commas put several values side by side.
"""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from torch import nn

from crosspruner.config import run_settings
from crosspruner.hardware import Plan, plan_model
from crosspruner.reporting.side_by_side import (
    comparison,
    comparison_figure,
    layers_of,
    totals_of,
)
from crosspruner.reporting.svg import save_figure
from crosspruner.training import build_model
from hydra_plugins._crosspruner_typed import one_line

CONFIGS = Path(__file__).resolve().parent.parent / "conf"


def main(arguments: list[str]) -> None:
    """Print the table of every combination, and write the files if `out` is set."""
    plans, out = {}, None
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for label, overrides in combinations(arguments):
            config = compose("map_report", overrides)
            plans[label or config.model.name] = plan_of(config)
            out = config.out
    print(comparison(plans) if len(plans) > 1 else next(iter(plans.values())).table(), end="")
    if out is not None:
        write(plans, Path(out))


def combinations(arguments: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Every combination of the comma-separated values: (the values that vary, overrides)."""
    choices = []
    for override in OverridesParser.create().parse_overrides(arguments):
        key, _, value = str(override.input_line).partition("=")
        values = override.sweep_string_iterator() if override.is_sweep_override() else [value]
        choices.append([(key, str(value)) for value in values])
    for combination in itertools.product(*choices):
        varied = [v for (_, v), c in zip(combination, choices, strict=True) if len(c) > 1]
        yield " ".join(varied), [f"{key}={value}" for key, value in combination]


def plan_of(config: DictConfig) -> Plan:
    """The dense plan of one composed configuration."""
    settings = run_settings(config)
    size = config.image_size
    high, wide = (size, size) if isinstance(size, int) else size
    choice: Any = OmegaConf.to_container(config.model, resolve=True)
    arguments = {
        key: value for key, value in choice.items() if key not in ("weights", "pretrained")
    }
    arguments |= {"num_classes": config.num_classes, "in_channels": config.in_channels}
    model = empty_model(arguments | {"image_size": (high, wide)})
    shape = (config.in_channels, high, wide)
    return plan_model(model, shape, settings.crossbar, settings.mapping)


def empty_model(arguments: dict[str, Any]) -> nn.Module:
    """The network without weights in memory, where its constructor allows that."""
    try:
        with torch.device("meta"):
            return build_model(**arguments)
    except (RuntimeError, NotImplementedError):  # constructors that read values back
        return build_model(**arguments)


def write(plans: dict[str, Plan], folder: Path) -> None:
    """The plans as JSON, their layers and totals as CSV, and a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for label, plan in plans.items():
        plan.save(folder / f"{label.replace(' ', '_')}.json")
    layers_of(plans).to_csv(folder / "crossbars.csv", index=False)
    totals_of(plans).to_csv(folder / "totals.csv", index=False)
    save_figure(comparison_figure(plans), folder / "crossbars")
    print(
        f"written to {folder}: {len(plans)} plan(s), crossbars.csv, totals.csv, crossbars.png, .svg"
    )


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        sys.exit(print(__doc__))
    try:
        main(sys.argv[1:])
    except Exception as error:
        sys.exit(f"error: {one_line(error, CONFIGS / 'map_report.yaml')}")
