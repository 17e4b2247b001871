import pytest
from torch import nn
from torch.nn.utils import parametrizations

from crosspruner.errors import ConfigError, DataError
from crosspruner.hardware import plan_model
from crosspruner.judging import check_device
from crosspruner.training import build_model
from crosspruner.training.data import SyntheticData
from crosspruner.training.on_device import DeviceSettings, accuracy_on_device


@pytest.fixture(scope="module")
def data():
    data = SyntheticData(image_size=16, num_images=120, batch_size=16)
    data.setup()
    return data


def labels_of(batches):
    return [int(label) for _, labels in batches for label in labels]


@pytest.mark.parametrize("images", [1, 16, 17, 10_000, None])
def test_some_test_images_are_the_same_each_time(data, images):
    found = labels_of(data.test_batches(images))
    assert len(found) == min(images or 10_000, len(data.splits.test))
    assert found == labels_of(data.test_batches(images))


def test_all_test_images_are_those_of_the_test_loader(data):
    assert labels_of(data.test_batches()) == labels_of(data.test_dataloader())


def test_some_test_images_are_not_the_first_ones(data):
    assert labels_of(data.test_batches(10)) != labels_of(data.test_dataloader())[:10]
    with pytest.raises(DataError, match="at least 1"):
        data.test_batches(0)


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


def test_computed_weights_see_the_images_of_arrays(data, monkeypatch):
    model = nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(768, 3)))
    plan = plan_model(model, (3, 16, 16), "32x32", "folded")
    seen = []
    monkeypatch.setattr(
        "crosspruner.training.on_device.chip_accuracy",
        lambda plan, network, device, seeds, batches, *_: seen.append(
            sum(len(labels) for _, labels in batches)
        ),
    )
    settings = DeviceSettings(weight_bits=8, images=20, array_images=5)
    accuracy_on_device(plan, model, data, settings)
    assert seen == [5]


@pytest.mark.filterwarnings("ignore:.*computed anew in each pass.*")
def test_noise_cannot_be_put_into_weights_that_are_computed():
    normed = parametrizations.weight_norm(nn.Linear(8, 4))
    network = nn.Sequential(nn.Linear(6, 8), normed, nn.Linear(4, 2))
    plan = plan_model(network, (6,), "8x8")
    with pytest.raises(ConfigError, match=r"for 1: they are computed.*Set device.train=false"):
        check_device(DeviceSettings(train=True, weight_bits=8), plan, network)
    check_device(DeviceSettings(weight_bits=8), plan, network)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 2))
    check_device(DeviceSettings(train=True, weight_bits=8), plan_model(plain, (6,), "8x8"), plain)


def test_accuracy_is_measured(data):
    model = build_model("vgg8", data.num_classes, data.image_size, width=0.0625)
    plan = plan_model(model, (3, 16, 16), "32x32", "folded")
    found = accuracy_on_device(plan, model, data, DeviceSettings(seeds=2, weight_bits=8))
    assert found.shape == (2,)
    assert bool(((found >= 0) & (found <= 1)).all())


def test_chips_measure_their_norms_on_training_images(data, monkeypatch):
    model = build_model("vgg8", data.num_classes, data.image_size, width=0.0625)
    plan = plan_model(model, (3, 16, 16), "32x32", "folded")
    seen = []
    monkeypatch.setattr(
        "crosspruner.training.on_device.chip_accuracy", lambda *given: seen.append(given[-1])
    )
    for count in (0, 20):
        accuracy_on_device(plan, model, data, DeviceSettings(norm_images=count))
    assert seen[0] is None
    assert seen[1].shape == (20, 3, 16, 16)


@pytest.mark.parametrize(
    "fields", [{"seeds": 0}, {"images": 0}, {"copies": "two"}, {"norm_images": -1}]
)
def test_settings_out_of_range_are_refused(fields):
    with pytest.raises(ConfigError, match=f"device.{next(iter(fields))}"):
        DeviceSettings(**fields)
