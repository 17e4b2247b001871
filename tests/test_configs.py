"""Every config file composes, and what it says is accepted."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from crosspruner.config import run_settings

CONF = Path(__file__).parents[1] / "conf"
GROUPS = sorted(
    (file.parent.name, file.stem)
    for file in CONF.glob("*/*.yaml")
    if file.parent.name not in ("hydra", "local")
)
REQUIRED = {
    "timm": ["model.name=resnet18"],
    "torchvision": ["model.name=alexnet"],
    "per_layer": ["budget.layer_ratios={features.*:0.5}"],
    "layer_ratios": ["budget.layer_ratios={features.*:0.5}"],  # which each trial brings
}


@pytest.fixture(autouse=True)
def no_hydra_left_over():
    yield
    GlobalHydra.instance().clear()


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [*overrides, "paths.data_dir=/data"])


@pytest.mark.parametrize(("group", "option"), GROUPS, ids=lambda v: str(v))
def test_every_option_composes_and_is_accepted(group, option):
    config = composed(f"{group}={option}", *REQUIRED.get(option, []))
    settings = run_settings(config)
    assert 0 <= settings.ratio < 1


def test_every_option_says_how_it_is_typed():
    for group, option in GROUPS:
        first = (CONF / group / f"{option}.yaml").read_text().splitlines()
        assert any(line.startswith("#") for line in first[:2]), f"{group}/{option}.yaml"


def test_choices_reach_the_library():
    settings = run_settings(composed("crossbar=64x64", "mapping=liang2018", "solver=magnitude"))
    assert str(settings.crossbar) == "64x64"
    assert (settings.mapping.kout, settings.mapping.kernel_rows) == (4, "one")
    assert settings.solver.name == "magnitude"
