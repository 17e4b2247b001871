"""data=imagenet: timm's own transforms, loader and accuracy against ours, to the last image."""

import logging
import math

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.utils import accuracy as timm_accuracy
from torch.optim import SGD
from torchvision import models

from crosspruner.errors import DataError, ModelError
from crosspruner.training import Classifier, build_model
from crosspruner.training.data import ImageNetData
from crosspruner.training.models import hub
from crosspruner.training.models.preprocessing import preprocessing_of

# timm leaves the files it reads open
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

CLASSES = [f"class_{number}" for number in range(11)]  # class_10 comes after class_9 in timm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs by chance: smooth colours and noise, of all shapes, modes and formats."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, each in (("train", 3), ("val", 4)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(each):
                coarse = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
                size = tuple(int(side) for side in rng.integers(40, 200, 2))
                image = PIL.Image.fromarray(coarse).resize(size, PIL.Image.Resampling.BICUBIC)
                noise = rng.integers(-25, 26, (size[1], size[0], 3))
                pixels = np.clip(np.asarray(image).astype(int) + noise, 0, 255).astype(np.uint8)
                image = PIL.Image.fromarray(pixels)
                if number == 1:
                    image = image.convert("L")
                suffix = "png" if number == 0 else "jpg"
                image.save(root / split / name / f"{number}.{suffix}")
    return root


def data_of(folder, name, **given):
    """A third of the few training images validates: one of each class."""
    return ImageNetData(folder, "timm", name, **{"val_fraction": 0.34, "batch_size": 8, **given})


def timms_batches(folder, model, batch_size, prefetcher=True):
    """The loader of timm's validate.py."""
    config = resolve_data_config({}, model=model, use_test_size=True)
    return create_loader(
        create_dataset("", str(folder), split="validation"),
        input_size=config["input_size"],
        batch_size=batch_size,
        use_prefetcher=prefetcher,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=0,
        persistent_workers=False,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        device=torch.device("cpu"),
    )


@torch.no_grad()
def with_opinions(model, batches):
    """Batch norms that know the images, and a head whose answers spread over the classes."""
    model.train()
    for images, _ in batches:
        model(images)
    model.eval()
    logits = torch.cat([model(images) for images, _ in batches])
    model.get_classifier().bias -= logits.mean(0)
    return model


@torch.no_grad()
def timms_count(model, batches):
    """validate.py's top-1, as a number of images."""
    model.eval()
    return sum(
        round(timm_accuracy(model(images), labels)[0].item() * len(labels) / 100)
        for images, labels in batches
    )


NETWORKS = [
    "test_resnet.r160_in1k",  # 160 pixels, crop 0.95, mean 0.5
    pytest.param("test_vit.r160_in1k", marks=pytest.mark.slow),
    pytest.param("mobilenetv2_035", marks=pytest.mark.slow),
    pytest.param("resnet10t.c3_in1k", marks=pytest.mark.slow),  # tested larger than trained
    pytest.param("convnext_atto.d2_in1k", marks=pytest.mark.slow),
    pytest.param("tf_efficientnet_b0.in1k", marks=pytest.mark.slow),
    pytest.param("deit_tiny_patch16_224", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_pixels_and_the_same_hits_as_timms_validate(folder, name, make_trainer, tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=len(CLASSES))
    theirs = with_opinions(theirs, list(timms_batches(folder, theirs, 8)))
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    batches = list(timms_batches(folder, theirs, 8))

    data = data_of(folder, name)
    for (ours, labels), (images, targets) in zip(data.test_dataloader(), batches, strict=True):
        assert torch.equal(ours, images)
        assert torch.equal(labels, targets)

    net = build_model(name, data.num_classes, data.image_size, family="timm")
    net.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    module = Classifier(net, SGD)
    (logged,) = make_trainer().test(module, data, verbose=False)
    total = 4 * len(CLASSES)
    hits = timms_count(theirs, batches)
    assert 0 < hits < total / 2  # the answers differ from image to image
    assert logged["test/acc"] == pytest.approx(hits / total, abs=1e-7)


def test_pixels_without_timms_prefetcher_agree_up_to_rounding(folder):
    model = timm.create_model("test_resnet.r160_in1k", num_classes=len(CLASSES))
    data = data_of(folder, "test_resnet.r160_in1k")
    images, _ = next(iter(timms_batches(folder, model, 8, prefetcher=False)))
    assert torch.allclose(next(iter(data.test_dataloader()))[0], images, atol=1e-5)


def test_classes_are_counted_as_timm_counts_them(folder):
    data = data_of(folder, "test_resnet")
    assert data.class_names == tuple(CLASSES)
    labels = [int(path.parent.name.removeprefix("class_")) for path in data.splits.test.paths]
    assert data.splits.test.labels.tolist() == labels


def test_training_is_at_the_training_size_and_repeats_itself(folder):
    name = "resnet10t.c3_in1k"
    how = preprocessing_of("timm", name)
    assert (how.train_size, how.image_size) == ((176, 176), (224, 224))
    policy = {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 1.0}
    data = data_of(folder, name, batch_size=4, **policy)
    first, again = (next(iter(data.train_dataloader()))[0] for _ in range(2))
    assert first.shape == (4, 3, 176, 176)
    assert torch.equal(first, again)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    assert not torch.equal(next(iter(loader))[0], first)


def test_keys_of_ones_own_win(folder):
    data = data_of(
        *(folder, "resnet10t.c3_in1k"),
        image_size=(64, 96),
        interpolation="bilinear",
        crop_pct=0.5,
        crop_mode="squash",
        mean=[0.1, 0.2, 0.3],
        std=[0.4, 0.5, 0.6],
        augment=False,
    )
    how = data.preprocessing
    assert (how.image_size, how.train_size) == ((64, 96), (64, 96))
    assert (how.interpolation, how.crop_pct, how.crop_mode) == ("bilinear", 0.5, "squash")
    assert (how.mean, how.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    images = data.train_dataloader().dataset
    assert images[0][0].shape == (3, 64, 96)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_b_16", "efficientnet_b1", "swin_t"])
def test_torchvisions_own_presets(name):
    """The same size after resizing and cropping, whatever the rounding."""
    preset = models.get_model_weights(name).DEFAULT.transforms()
    how = preprocessing_of("torchvision", name)
    assert how.image_size == (preset.crop_size[0],) * 2
    assert math.floor(how.image_size[0] / how.crop_pct) == preset.resize_size[0]
    assert how.interpolation == preset.interpolation.value
    assert preprocessing_of("crosspruner", "resnet18") == preprocessing_of(
        "torchvision", "resnet18"
    )


def test_networks_without_published_weights_get_timms_defaults():
    how = preprocessing_of("crosspruner", "vgg16")
    assert (how.image_size, how.interpolation, how.crop_pct) == ((224, 224), "bicubic", 0.875)


def test_what_is_read_is_said_before_training(folder, caplog):
    with caplog.at_level(logging.INFO, logger="crosspruner"):
        data_of(folder, "test_resnet.r160_in1k").setup()
    assert "image_size=(160, 160)" in caplog.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"interpolation": "cubic"}, r"interpolation=cubic given: .* bicubic"),
        ({"crop_mode": "middle"}, r"crop_mode=middle given: .* center, squash, border"),
        ({"crop_pct": 1.5}, r"crop_pct=1\.5 given: it must lie above 0 to 1"),
        ({"random_erasing": 2.0}, r"random_erasing=2\.0 given: it must lie from 0 to 1"),
        ({"color_jitter": -1.0}, r"color_jitter=-1\.0 given: it must lie 0 or more"),
        ({"auto_augment": "nope"}, r"auto_augment=nope given: timm cannot read it"),
    ],
)
def test_values_that_timm_does_not_know(folder, given, said):
    with pytest.raises(DataError, match=said):
        data_of(folder, "test_resnet", **given)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.dir=\S+nope does not exist"):
        ImageNetData(tmp_path / "nope", "timm", "resnet18").setup()


def test_weights_out_of_reach_are_told_of_in_one_line(monkeypatch, tmp_path):
    """At once, and with what to do."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "why_out_of_reach", lambda: "Name or service not known")
    with pytest.raises(ModelError) as raised:
        build_model("resnet18.a1_in1k", 1000, (224, 224), family="timm", pretrained=True)
    said = str(raised.value)
    assert "\n" not in said
    assert "cannot be reached: Name or service not known" in said
    assert "model.weights=FILE" in said
    assert "/timm/resnet18.a1_in1k" in said
    assert not hub.constants.HF_HUB_OFFLINE


def test_a_hub_that_does_not_answer_is_out_of_reach(monkeypatch):
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    assert "refused" in hub.why_out_of_reach()
