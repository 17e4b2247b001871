import pytest
import torch
from torch import nn
from torchvision.models import vgg16_bn

from crosspruner.errors import ModelError
from crosspruner.training.models.vgg import vgg8, vgg16


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in net.state_dict().items()}


def test_vgg8_layers_are_those_of_the_design():
    net = vgg8(10)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [
        (3, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)
    ]  # fmt: skip
    assert all(m.kernel_size == (3, 3) and m.bias is None for m in convolutions)
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(512 * 16, 1024), (1024, 10)]
    kinds = "".join(type(m).__name__[0] for m in net.features)  # Conv BatchNorm ReLU ... MaxPool
    assert kinds == "CBRCBRM" * 3


def test_vgg8_parameter_count():
    convolutions = 9 * (3 * 128 + 128**2 + 128 * 256 + 256**2 + 256 * 512 + 512**2)
    norms = 2 * (2 * 128 + 2 * 256 + 2 * 512)
    classifier = 8192 * 1024 + 1024 + 1024 * 10 + 10
    assert parameters(vgg8(10)) == convolutions + norms + classifier == 12_978_058


def test_vgg8_forward_and_odd_sizes():
    assert vgg8(7, width=0.125)(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    net = vgg8(3, image_size=(17, 30), in_channels=1, width=0.125)
    assert net.classifier[0].in_features == 64 * 2 * 3  # 17 -> 8 -> 4 -> 2, 30 -> 15 -> 7 -> 3
    assert net(torch.rand(2, 1, 17, 30)).shape == (2, 3)
    assert vgg8(3, image_size=(8, 8), width=0.125)(torch.rand(2, 3, 8, 8)).shape == (2, 3)


def test_vgg8_keys_are_features_and_classifier():
    tops = {key.split(".")[0] for key in vgg8(10, width=0.125).state_dict()}
    assert tops == {"features", "classifier"}


def test_vgg16_of_large_images_is_torchvisions():
    with torch.device("meta"):
        ours, theirs = vgg16(1000, image_size=(224, 224)), vgg16_bn()
    assert shapes(ours) == shapes(theirs)
    assert parameters(ours) == 138_365_992
    assert str(ours) == str(theirs)


def test_vgg16_of_small_images_has_torchvisions_features_and_16_layers():
    with torch.device("meta"):
        ours, theirs = vgg16(10), vgg16_bn()
    assert shapes(ours.features) == shapes(theirs.features)
    assert ours.classifier[0].in_features == 512
    weighted = [m for m in ours.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == 16
    assert parameters(ours) == 14_723_136 + 2 * (512 * 512 + 512) + 512 * 10 + 10 == 15_253_578


@pytest.mark.parametrize(
    ("size", "small"), [((64, 64), True), ((65, 64), False), ((64, 65), False)]
)
def test_vgg16_changes_form_above_64_pixels(size, small):
    with torch.device("meta"):
        net = vgg16(10, image_size=size)
    assert isinstance(net.avgpool, nn.Identity) == small
    assert net.classifier[0].out_features == (512 if small else 4096)


def test_vgg16_forward_of_both_forms():
    assert vgg16(10, width=0.125)(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert vgg16(10, (96, 70), width=0.0625)(torch.rand(2, 3, 96, 70)).shape == (2, 10)


def test_width_scales_every_layer():
    assert [m.out_channels for m in vgg8(10, width=0.5).modules() if isinstance(m, nn.Conv2d)] == [
        64, 64, 128, 128, 256, 256
    ]  # fmt: skip
    assert vgg8(10, width=0.5).classifier[0].out_features == 512
    assert vgg16(10, width=0.001).features[0].out_channels == 1


def test_images_too_small_for_the_poolings():
    with pytest.raises(ModelError, match=r"31x40 pixels are too small .* 32x32 or more"):
        vgg16(10, image_size=(31, 40))
    with pytest.raises(ModelError, match="8x8 or more"):
        vgg8(10, image_size=(8, 7))


def test_layers_start_from_hes_draw():
    torch.manual_seed(0)
    net = vgg8(10, width=0.25)
    hidden, head, second = net.classifier[0], net.classifier[2], net.features[3]
    assert hidden.weight.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.02)
    assert head.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert second.weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
    assert not hidden.bias.any()


@pytest.mark.parametrize(("size", "dropout"), [((32, 32), 0.2), ((96, 96), 0.5)])
def test_vgg16_dropout_of_both_forms(size, dropout):
    with torch.device("meta"):
        net = vgg16(10, size)
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [dropout] * 2
