import pytest

from crosspruner.errors import ConfigError
from crosspruner.hardware import plan_model
from crosspruner.training import build_model
from crosspruner.training.data import SyntheticData
from crosspruner.training.on_device import DeviceSettings, accuracy_on_device, first_images


@pytest.fixture(scope="module")
def data():
    data = SyntheticData(image_size=16, num_images=120, batch_size=16)
    data.setup()
    return data


@pytest.mark.parametrize("images", [1, 16, 17, None])
def test_first_images_are_the_first(data, images):
    found = [int(label) for _, labels in first_images(data, images) for label in labels]
    whole = [int(label) for _, labels in data.test_dataloader() for label in labels]
    assert found == whole[:images]


def test_images_are_counted_by_the_way_they_are_computed(data, monkeypatch):
    model = build_model("vgg8", data.num_classes, data.image_size, width=0.0625)
    plan = plan_model(model, (3, 16, 16), "32x32", "folded")
    seen = []
    monkeypatch.setattr(
        "crosspruner.training.on_device.chip_accuracy",
        lambda plan, network, device, seeds, batches, *_: seen.append(
            (len(seeds), sum(len(labels) for _, labels in batches))
        ),
    )
    for fields in ({}, {"adc_bits": 8}, {"copies": "own"}):
        settings = DeviceSettings(seeds=3, images=20, array_images=5, lognormal=0.1, **fields)
        accuracy_on_device(plan, model, data, settings)
    assert seen == [(3, 20), (3, 5), (3, 5)]


def test_accuracy_is_measured(data):
    model = build_model("vgg8", data.num_classes, data.image_size, width=0.0625)
    plan = plan_model(model, (3, 16, 16), "32x32", "folded")
    found = accuracy_on_device(plan, model, data, DeviceSettings(seeds=2, weight_bits=8))
    assert found.shape == (2,)
    assert bool(((found >= 0) & (found <= 1)).all())


@pytest.mark.parametrize("fields", [{"seeds": 0}, {"images": 0}, {"copies": "two"}])
def test_settings_out_of_range_are_refused(fields):
    with pytest.raises(ConfigError, match=f"device.{next(iter(fields))}"):
        DeviceSettings(**fields)
