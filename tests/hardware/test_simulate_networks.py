"""Whole pruned networks on crossbars give the logits of the masked networks, in float64."""

import pytest
import torch
import torchvision.models as zoo
from torch import nn

from crosspruner.hardware import plan_model, simulate


def vgg8(width=128):
    channels, layers = [3, width, width, 2 * width, 2 * width, 4 * width, 4 * width], []
    for i in range(6):
        layers += [
            nn.Conv2d(channels[i], channels[i + 1], 3, padding=1, bias=False),
            nn.BatchNorm2d(channels[i + 1]),
            nn.ReLU(),
        ]
        layers += [nn.MaxPool2d(2)] if i % 2 else []
    head = [nn.Flatten(), nn.Linear(64 * width, 8 * width), nn.ReLU(), nn.Linear(8 * width, 10)]
    return nn.Sequential(*layers, *head)


def vgg16():
    model = zoo.vgg16_bn(weights=None)
    model.avgpool, model.classifier = nn.Identity(), nn.Linear(512, 10)
    return model


NETWORKS = {
    "vgg8": vgg8,
    "vgg8_quarter": lambda: vgg8(32),
    "vgg16": vgg16,
    "resnet18": lambda: zoo.resnet18(weights=None),
    "resnet50": lambda: zoo.resnet50(weights=None),
    "mobilenet_v2": lambda: zoo.mobilenet_v2(weights=None, width_mult=1.0),
    "mobilenet_v2_half": lambda: zoo.mobilenet_v2(weights=None, width_mult=0.5),
    "efficientnet_b0": lambda: zoo.efficientnet_b0(weights=None),
    "convnext_tiny": lambda: zoo.convnext_tiny(weights=None),
}


def prune_at_random(plan, model, generator):
    """Random masks and orders on every layer; zeroes what they drop in the model's weights."""
    masks, inputs, outputs = {}, {}, {}
    modules = dict(model.named_modules())
    for layer in plan.layers:
        geometry = layer.geometry
        mask = torch.rand(layer.mask_shape, generator=generator) < 0.6
        mask[torch.arange(len(mask)), torch.arange(len(mask)) % mask.shape[1]] = True
        size = (geometry.conv_groups, geometry.group_inputs)
        order = torch.rand(size, generator=generator).argsort(1)
        place = order.argsort(1) // layer.kin  # input group of each FM
        size = (geometry.conv_groups, geometry.group_outputs)
        outs = torch.rand(size, generator=generator).argsort(1)
        unit = torch.arange(geometry.out_channels)
        if layer.grain == "crossbar":
            first = torch.arange(geometry.conv_groups)[:, None] * layer.output_groups
            unit = (outs.argsort(1) // layer.kout + first).flatten()
        group = torch.arange(geometry.out_channels) // geometry.group_outputs
        kept = mask[unit[:, None], place[group]]
        weight = modules[layer.name].weight
        with torch.no_grad():
            weight.mul_(kept.view(*kept.shape, *[1] * (weight.dim() - 2)))
        masks[layer.name], inputs[layer.name], outputs[layer.name] = mask, order, outs
    return plan.pruned(masks, plan.grain, inputs, outputs)


def check(name, size, crossbar, mapping, grain):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = NETWORKS[name]().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    dense = plan_model(model, (3, size, size), crossbar, mapping, grain)
    with torch.no_grad():
        unpruned = model(x)
        plan = prune_at_random(dense, model, generator)
        masked = model(x)
    assert plan.compute_crossbars < dense.compute_crossbars
    simulated = simulate(plan, model, x)
    scale = masked.abs().max()
    assert (unpruned - masked).abs().max() > 1e-3 * scale
    assert (simulated - masked).abs().max() < 1e-10 * scale


@pytest.mark.parametrize(
    ("name", "size", "crossbar", "mapping", "grain"),
    [
        ("vgg8_quarter", 32, "64x64", "semifolded", "column"),
        ("vgg8_quarter", 32, "256x256", "liang2018", "crossbar"),
        ("vgg8_quarter", 32, "64x64", "unfolded", "column"),
        ("resnet18", 33, "128x128", "semifolded", "column"),
        ("mobilenet_v2_half", 33, "32x32", "folded", "crossbar"),
    ],
)
def test_network(name, size, crossbar, mapping, grain):
    check(name, size, crossbar, mapping, grain)


@pytest.mark.slow
@pytest.mark.parametrize("grain", ["crossbar", "column"])
@pytest.mark.parametrize("mapping", ["folded", "semifolded", "liang2018"])
@pytest.mark.parametrize(
    "name",
    ["vgg8", "vgg16", "resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny"],
)
def test_full_network(name, mapping, grain):
    size = 32 if name.startswith("vgg") else 64
    check(name, size, "128x128", mapping, grain)
