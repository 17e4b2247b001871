"""The architectures that the package promises to take, the smallest of each kind.

scripts/zoo_table.py counts their crossbars, tests/test_zoo.py takes them through everything.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import crosspruner  # noqa: F401  mends torchvision's import where its C++ part is missing


@dataclass(frozen=True)
class Entry:
    """One architecture of a public zoo."""

    family: str
    source: str
    """timm or torchvision."""
    name: str
    size: int
    """Height and width of the images that it is tried with."""
    table_size: int = 224
    """Of those that the table counts for."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments that make the model take small images."""
    exclude: tuple[str, ...] | None = None
    """Layers that the trial leaves as they are: the widest take minutes and gigabytes."""
    fast: bool = False
    """Whether it is among the few that every test run tries."""

    @property
    def label(self) -> str:
        """As pytest and the table show it."""
        return f"{self.source}:{self.name}"

    def small(self) -> nn.Module:
        """The model for small images, in evaluation mode, with random weights none of them idle."""
        torch.manual_seed(0)
        model = self.create(**self.settings)
        wake(model)
        return model.eval()

    def create(self, **settings: Any) -> nn.Module:
        """The model as its zoo makes it, without trained weights."""
        if self.source == "timm":
            import timm

            model: nn.Module = timm.create_model(self.name, pretrained=False, **settings)
            return model
        from torchvision import models

        model = models.get_model(self.name, weights=None, **_QUIET.get(self.name, {}), **settings)
        return model


# Without these, torchvision warns of a slow initialisation.
_QUIET: dict[str, dict[str, Any]] = {
    "inception_v3": {"init_weights": False},
    "googlenet": {"init_weights": False},
}


def wake(model: nn.Module) -> None:
    """Draws what starts as zero or next to it (classifiers, layer scales), and statistics of batch
    norms: a network that ignores its layers would pass any test."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and float(parameter.abs().max()) < 1e-3:
                std = 0.02 if parameter.dim() > 1 and min(parameter.shape) > 1 else 0.5
                parameter.normal_(std=std, generator=generator)
        for module in model.modules():
            mean, variance = (getattr(module, f"running_{key}", None) for key in ("mean", "var"))
            if isinstance(mean, torch.Tensor) and isinstance(variance, torch.Tensor):
                mean.normal_(std=0.1, generator=generator)
                variance.uniform_(0.5, 1.5, generator=generator)


def _t(family: str, name: str, size: int, table_size: int = 224, **more: Any) -> Entry:
    return Entry(family, "timm", name, size, table_size, **more)


def _v(family: str, name: str, size: int, table_size: int = 224, **more: Any) -> Entry:
    return Entry(family, "torchvision", name, size, table_size, **more)


def _img(size: int) -> dict[str, Any]:
    return {"settings": {"img_size": size}}


ZOO = [
    _t("VGG", "vgg11", 32, exclude=("features.0", "pre_logits.*", "head.*")),
    _v("VGG", "vgg11_bn", 32, exclude=("features.0", "classifier.*")),
    _v("ResNet", "resnet18", 32),
    _v("ResNet", "resnet50", 32),
    _t("ResNet", "resnet10t", 32),
    _t("ResNet", "resnet26d", 32),
    _t("ResNet", "legacy_seresnet18", 64),
    _t("ResNet", "resnetv2_50x1_bit", 32),
    _t("ResNet", "nf_resnet26", 32),
    _v("RegNet", "regnet_x_400mf", 32),
    _v("RegNet", "regnet_y_400mf", 32),
    _t("RegNet", "regnetx_002", 32, fast=True),
    _t("RegNet", "regnety_002", 32),
    _t("RegNet", "regnetz_005", 32),
    _v("ResNeXt", "resnext50_32x4d", 32),
    _t("ResNeXt", "resnext26ts", 32),
    _t("ResNeXt", "seresnext26t_32x4d", 32),
    _v("DenseNet", "densenet121", 32),
    _t("DenseNet", "densenet121", 32),
    _v("MobileNet v2", "mobilenet_v2", 32),
    _t("MobileNet v2", "mobilenetv2_050", 32, fast=True),
    _v("MobileNet v3", "mobilenet_v3_small", 32),
    _v("MobileNet v3", "mobilenet_v3_large", 32),
    _t("MobileNet v3", "mobilenetv3_small_050", 32),
    _t("MobileNet v3", "tf_mobilenetv3_small_minimal_100", 32),
    _t("MobileNet v4", "mobilenetv4_conv_small_035", 32, fast=True),
    _t("MobileNet v4", "mobilenetv4_conv_small_050", 32),
    _t("MobileNet v4", "mobilenetv4_hybrid_medium", 64),
    _v("EfficientNet", "efficientnet_b0", 32),
    _v("EfficientNet", "efficientnet_v2_s", 32),
    _t("EfficientNet", "efficientnet_lite0", 32),
    _t("EfficientNet", "tf_efficientnet_b0", 32),
    _t("EfficientNet", "tf_efficientnetv2_b0", 32),
    _v("ConvNeXt", "convnext_tiny", 32),
    _t("ConvNeXt", "convnext_atto", 32, fast=True),
    _t("ConvNeXt", "convnextv2_atto", 32),
    _t("ConvNeXt", "convnext_femto_ols", 32),
    _t("NFNet", "nfnet_l0", 32),
    _t("NFNet", "dm_nfnet_f0", 32),
    _t("NFNet", "eca_nfnet_l0", 32),
    _t("NFNet", "nf_regnet_b0", 32),
    _v("ViT", "vit_b_16", 32, settings={"image_size": 32}),
    _v("ViT", "vit_b_32", 64, settings={"image_size": 64}),
    _t("ViT", "vit_tiny_patch16_224", 32, **_img(32), fast=True),
    _t("ViT", "vit_small_patch32_224", 64, **_img(64)),
    _t("ViT", "vit_base_patch16_rope_reg1_gap_256", 64, 256, **_img(64)),
    _t("DeiT", "deit_tiny_patch16_224", 32, **_img(32)),
    _t("DeiT", "deit3_small_patch16_224", 32, **_img(32)),
    _t("DeiT", "deit_tiny_distilled_patch16_224", 32, **_img(32)),
    _v("Swin", "swin_t", 32),
    _v("Swin", "swin_v2_t", 32, 256),
    _t("Swin", "swin_tiny_patch4_window7_224", 224),
    _t("Swin", "swinv2_tiny_window8_256", 64, 256, **_img(64)),
    _v("MaxViT", "maxvit_t", 224),
    _t("MaxViT", "maxvit_nano_rw_256", 64, 256, **_img(64)),
    _t("MaxViT", "coatnet_pico_rw_224", 64, **_img(64)),
    _t("MLP-Mixer", "mixer_s32_224", 224),
    _t("MLP-Mixer", "mixer_s16_224", 224),
    _t("MLP-Mixer", "gmixer_12_224", 224),
    _t("MLP-Mixer", "resmlp_12_224", 224),
    _t("EfficientFormer", "efficientformer_l1", 224),
    _t("EfficientFormer", "efficientformerv2_s0", 64, **_img(64)),
    _t("FastViT", "fastvit_t8", 64, 256),
    _t("FastViT", "fastvit_s12", 64, 256),
    _t("Inception", "inception_v3", 96, 299),
    _v("Inception", "inception_v3", 96, 299),
    _v("Inception", "googlenet", 32),
    _v("SqueezeNet", "squeezenet1_0", 64),
    _v("SqueezeNet", "squeezenet1_1", 64, fast=True),
]
"""Every architecture of the promise, by family."""
