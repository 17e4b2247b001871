"""Every config file composes, and what it says is accepted."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import nn

from crosspruner.assemble import module_of
from crosspruner.config import run_settings
from crosspruner.errors import ConfigError

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
    "held": ["procedure.run=logs/train/runs/STAMP"],
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


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("distill=2", "distill=2 is out of range: give the share of the loss"),
        ("training.ema=1", "training.ema=1.0 is out of range: give a decay between 0 and 1"),
        ("training.mixup=-1", "training.mixup=-1.0 is out of range: give alpha"),
        ("training.mix_share=0", "training.mix_share=0.0 is out of range"),
        ("training.label_smoothing=1", "training.label_smoothing=1.0 is out of range"),
        ("training.distill_temperature=0", "training.distill_temperature=0.0 is out of range"),
        ("procedure=held", "procedure=held trains a finished run further: type procedure.run="),
        ("training.compile=maybe", "training.compile: Value 'maybe' is not a valid bool"),
    ],
)
def test_switches_of_training_are_checked(typed, said):
    with pytest.raises(ConfigError) as raised:
        run_settings(composed(typed))
    assert said in str(raised.value)


def test_choices_reach_the_library():
    settings = run_settings(composed("crossbar=64x64", "mapping=liang2018", "solver=magnitude"))
    assert str(settings.crossbar) == "64x64"
    assert (settings.mapping.kout, settings.mapping.kernel_rows) == (4, "one")
    assert settings.solver.name == "magnitude"


@pytest.mark.parametrize("key", ["include", "exclude", "tags"])
def test_a_word_where_a_list_belongs_is_told_how_to_become_one(key):
    with pytest.raises(ConfigError, match=rf"^{key}=features is no list: type {key}=\[features\]$"):
        run_settings(composed(f"{key}=features"))


def trained(*overrides):
    """The LightningModule of a configuration, around a network that stands for any."""
    config = composed(*overrides)
    data = SimpleNamespace(num_classes=10)
    return module_of(config, run_settings(config), nn.Linear(1, 1), data)


@pytest.mark.parametrize("rate", ["fast", "-1"])
def test_an_optimizer_that_refuses_its_values_does_so_before_training_and_names_them(rate):
    with pytest.raises(ConfigError, match=rf"^optimizer\.lr={rate}, .*torch\.optim\.SGD refuses"):
        trained(f"optimizer.lr={rate}")


def test_the_learning_rate_may_stay_as_it_is():
    assert trained("lr_schedule=none").make_scheduler is None
    assert trained().make_scheduler is not None
