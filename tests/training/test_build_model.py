import pytest
import torch

from crosspruner.errors import ModelError
from crosspruner.training import build_model
from crosspruner.training.models import build


@pytest.mark.parametrize("name", build.OWN)
def test_every_own_model_is_built_and_runs(name):
    width = 0.125 if name in build.SCALABLE else 1.0
    net = build_model(name, 4, image_size=(32, 32), width=width).eval()
    with torch.no_grad():
        assert net(torch.rand(2, 3, 32, 32)).shape == (2, 4)


def test_image_size_may_be_any_pair():
    net = build_model("vgg8", 4, image_size=[16, 24], width=0.125)
    assert net(torch.rand(2, 3, 16, 24)).shape == (2, 4)


def test_unknown_name():
    with pytest.raises(ModelError) as error:
        build_model("vg8", 10)
    assert str(error.value) == (
        "model.name=vg8 given: it must be one of vgg8, vgg16, resnet20, resnet18, resnet34, "
        "resnet50 (did you mean vgg8?), or a name of a zoo: model=timm model.name=vg8."
    )


def test_unknown_family():
    with pytest.raises(ModelError, match=r"model.family=keras given: it must be crosspruner, timm"):
        build_model("vgg8", 10, family="keras")


@pytest.mark.parametrize("width", [0.0, -1.0, 8.5, float("nan"), float("inf"), "wide"])
@pytest.mark.parametrize("name", build.SCALABLE)
def test_width_out_of_range(name, width):
    with pytest.raises(ModelError, match=r"width=\S+ given: it must be above 0 and at most 8"):
        build_model(name, 10, width=width)


@pytest.mark.parametrize(("name", "family"), [("resnet18", "crosspruner"), ("vgg8", "timm")])
def test_width_of_a_model_of_one_width(name, family):
    with pytest.raises(ModelError, match=f"{name} only comes at width 1. vgg8, vgg16, resnet20"):
        build_model(name, 10, width=0.5, family=family)


@pytest.mark.parametrize(
    "numbers",
    [{"num_classes": 0}, {"image_size": (0, 32)}, {"image_size": (32, -1)}, {"in_channels": 0}],
)
def test_numbers_below_one(numbers):
    with pytest.raises(ModelError, match="each number must be 1 or more"):
        build_model("vgg8", **{"num_classes": 10, **numbers})


def test_pretrained_of_a_model_without_weights():
    with pytest.raises(ModelError, match=r"no weights of vgg8 to download. Give a file: model.wei"):
        build_model("vgg8", 10, pretrained=True)
