"""Every file of conf/model and conf/data composes and builds."""

from pathlib import Path

import hydra
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from crosspruner.training import build_model
from crosspruner.training.data import ImageData

CONF = Path(__file__).parents[2] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
DATA = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))


def group(name: str, overrides: list[str]):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+{name}", *overrides])
    outside = {"seed": 3, "paths": {"data_dir": "/data"}}
    if name.startswith("data"):  # data may ask what suits the network
        outside["model"] = {"family": "timm", "name": "resnet10t"}
    return OmegaConf.merge(outside, config)


def test_the_groups_are_those_of_the_design():
    assert set(MODELS) == {
        "vgg8", "vgg16", "resnet18", "resnet20", "resnet34", "resnet50", "timm", "torchvision"
    }  # fmt: skip
    assert set(DATA) == {"digits", "cifar10", "cifar100", "imagenet", "folder", "synthetic"}


@pytest.mark.parametrize(
    "path",
    [*sorted((CONF / "model").glob("*")), *sorted((CONF / "data").glob("*"))],
    ids=lambda path: path.stem,
)
def test_header_shows_the_command(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# python train.py {path.parent.name}={path.stem}")


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_same_keys_and_build(name):
    zoo = ["model.name=resnet18"] if name in ("timm", "torchvision") else []
    model = group(f"model={name}", zoo).model
    assert list(model) == ["family", "name", "width", "weights", "pretrained"]
    assert build_model(
        model.name, 10, family=model.family, width=model.width, pretrained=model.pretrained
    )


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_a_zoo_needs_a_name(name):
    with pytest.raises(MissingMandatoryValue, match=r"model\.name"):
        _ = group(f"model={name}", []).model.name


@pytest.mark.parametrize("name", DATA)
def test_data_are_instantiated(name):
    data = hydra.utils.instantiate(group(f"data={name}", ["data.split_seed=4"]).data)
    assert isinstance(data, ImageData)
    assert (data.seed, data.split_seed) == (3, 4)


def test_image_size_from_the_command_line():
    data = hydra.utils.instantiate(group("data=synthetic", ["data.image_size=[16,24]"]).data)
    assert data.image_size == (16, 24)
