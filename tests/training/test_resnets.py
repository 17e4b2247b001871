import pytest
import torch
from torch import nn
from torchvision import models

from crosspruner.training.models.resnet20 import ResNet20, ZeroPaddedShortcut
from crosspruner.training.models.torchvision_zoo import torchvision_resnet


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in net.state_dict().items()}


KNOWN = {  # parameters at 1000 classes and 224x224, as torchvision documents them
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
}


@pytest.mark.parametrize("name", KNOWN)
def test_large_images_get_torchvisions_network(name):
    with torch.device("meta"):
        ours, theirs = torchvision_resnet(name, 1000, (224, 224)), models.get_model(name)
    assert parameters(ours) == KNOWN[name]
    assert shapes(ours) == shapes(theirs)
    assert str(ours) == str(theirs)


@pytest.mark.parametrize("name", KNOWN)
def test_small_images_get_a_3x3_stem_under_the_same_keys(name):
    with torch.device("meta"):
        ours, theirs = torchvision_resnet(name, 10, (32, 32)), models.get_model(name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert (ours.conv1.kernel_size, ours.conv1.stride) == ((3, 3), (1, 1))
    stem, head = 64 * 3 * (49 - 9), ours.fc.in_features * 990 + 990
    assert parameters(ours) == KNOWN[name] - stem - head
    assert name != "resnet18" or parameters(ours) == 11_173_962  # the usual CIFAR ResNet18


def test_small_stem_keeps_the_resolution():
    net = torchvision_resnet("resnet18", 10, (32, 32)).eval()
    sizes = []
    net.layer1.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[-2:]))
    with torch.no_grad():
        assert net(torch.rand(1, 3, 33, 32)).shape == (1, 10)
    assert sizes == [(33, 32)]


@pytest.mark.parametrize(("size", "kernel"), [((64, 64), 3), ((64, 65), 7)])
def test_resnet18_changes_stem_above_64_pixels(size, kernel):
    with torch.device("meta"):
        net = torchvision_resnet("resnet18", 10, size)
    assert net.conv1.kernel_size == (kernel, kernel)


def test_resnet18_other_input_channels():
    net = torchvision_resnet("resnet18", 10, (32, 32), in_channels=1)
    assert net.conv1.weight.shape == (64, 1, 3, 3)
    assert net.conv1.bias is None


def test_resnet20_parameter_count():
    assert parameters(ResNet20(10)) == 269_722  # 0.27 M in the paper's table 6


def test_resnet20_has_twenty_weighted_layers():
    net = ResNet20(10)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == 20
    assert "layer3.2.conv2.weight" in net.state_dict()
    assert not [key for key in net.state_dict() if "downsample" in key]


@pytest.mark.parametrize("size", [(32, 32), (28, 33), (1, 1)])
def test_resnet20_forward(size):
    net = ResNet20(5, in_channels=2, width=0.25)
    assert net(torch.rand(2, 2, *size)).shape == (2, 5)


def test_resnet20_width():
    net = ResNet20(10, width=0.5)
    assert [net.conv1.out_channels, net.layer2[0].conv1.out_channels, net.fc.in_features] == [
        8, 16, 32
    ]  # fmt: skip


def test_zero_padded_shortcut_by_hand():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    out = ZeroPaddedShortcut(1, 3, stride=2)(x)
    assert torch.equal(out[0, 0], torch.tensor([[0.0, 2.0], [6.0, 8.0]]))
    assert out.shape == (1, 3, 2, 2)
    assert not out[0, 1:].any()
