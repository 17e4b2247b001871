from urllib.error import URLError

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from crosspruner.errors import ModelError
from crosspruner.training import build_model


class PlainWeights:
    """Stands for torchvision's enumeration of pretrained weights: one set, no download."""

    def __init__(self, outcome):
        self.DEFAULT = self
        self.outcome = outcome

    def get_state_dict(self, progress):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    ("family", "name", "size"),
    [
        ("timm", "resnet10t", (32, 32)),
        ("timm", "test_vit4", (48, 48)),
        ("timm", "test_efficientnet.r160_in1k", (40, 56)),
        ("torchvision", "squeezenet1_1", (64, 48)),
        ("torchvision", "googlenet", (32, 32)),
        ("torchvision", "shufflenet_v2_x0_5", (32, 32)),
    ],
)
def test_any_classifier_of_a_zoo(family, name, size):
    net = build_model(name, 5, image_size=size, family=family)
    assert net.training
    with torch.no_grad():
        assert net.eval()(torch.rand(2, 3, *size)).shape == (2, 5)


def test_zoo_networks_are_taken_as_they_are():
    ours = build_model("resnet18", 10, family="timm")
    theirs = timm.create_model("resnet18", num_classes=10)
    assert str(ours) == str(theirs)


@pytest.mark.parametrize("family", ["timm", "torchvision"])
def test_other_input_channels(family):
    net = build_model("mobilenetv3_small_050" if family == "timm" else "mobilenet_v3_small", 5,
                      in_channels=1, family=family)  # fmt: skip
    with torch.no_grad():
        assert net.eval()(torch.rand(1, 1, 32, 32)).shape == (1, 5)
    assert next(m for m in net.modules() if isinstance(m, nn.Conv2d)).stride == (2, 2)


@pytest.mark.parametrize("family", ["timm", "torchvision"])
@pytest.mark.parametrize("name", ["", "???"])
def test_a_name_that_was_not_typed(family, name):
    said = rf"^model.name is missing: type model.name=NAME. All names: {family}.list_models\(\)"
    with pytest.raises(ModelError, match=said):
        build_model(name, 5, family=family)


@pytest.mark.parametrize("family", ["timm", "torchvision"])
def test_unknown_name_gets_near_ones(family):
    with pytest.raises(ModelError) as error:
        build_model("resnet81", 10, family=family)
    message = str(error.value)
    assert message.startswith(f"model.name=resnet81 given: {family} has no such classifier. Did ")
    assert "resnet18" in message
    assert f"{family}.list_models()" in message


@pytest.mark.parametrize("family", ["timm", "torchvision"])
def test_unknown_name_without_near_ones(family):
    with pytest.raises(ModelError, match="No name there is near it"):
        build_model("nope", 10, family=family)


@pytest.mark.parametrize(
    ("family", "name", "reason"),
    [
        ("torchvision", "alexnet", "does not take images of 32x32 pixels"),
        ("timm", "test_vit4", "does not take images of 33x32 pixels .*It was made for 160x160"),
    ],
)
def test_images_that_a_network_does_not_take(family, name, reason):
    size = (33, 32) if family == "timm" else (32, 32)
    with pytest.raises(ModelError, match=f"model={family} model.name={name} {reason}"):
        build_model(name, 10, image_size=size, family=family)


def test_unknown_weight_tag_of_timm():
    with pytest.raises(ModelError, match=r"Invalid pretrained tag .nope. for resnet18"):
        build_model("resnet18.nope", 10, family="timm")


def test_pretrained_timm_without_internet(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.create_model", refuse)
    monkeypatch.setattr("crosspruner.training.models.hub.why_out_of_reach", lambda: "")
    with pytest.raises(ModelError, match=r"\(no route to host\). Pretrained .*internet once.*FILE"):
        build_model("resnet18", 10, family="timm", pretrained=True)


@pytest.mark.parametrize("family", ["crosspruner", "torchvision"])
def test_pretrained_torchvision_without_internet(monkeypatch, family):
    refused = PlainWeights(URLError("no route to host"))
    monkeypatch.setattr(models, "get_model_weights", lambda name: refused)
    with pytest.raises(ModelError, match=r"cannot be downloaded .*no route.*internet once"):
        build_model("resnet18", 10, family=family, pretrained=True)


def test_pretrained_weights_go_where_they_fit(monkeypatch, caplog):
    source = models.resnet18()
    weights = PlainWeights(source.state_dict())
    monkeypatch.setattr(models, "get_model_weights", lambda name: weights)
    net = build_model("resnet18", 10, image_size=(32, 32), pretrained=True)
    assert torch.equal(net.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert net.conv1.weight.shape == (64, 3, 3, 3)
    assert "of another shape: 3 (conv1.weight, fc.weight, fc.bias)" in caplog.text
