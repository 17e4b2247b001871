"""The experiments after the paper: each composes, and the ImageNet ones run on a folder like it."""

import json

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from crosspruner.config import run_settings

from .conftest import ROOT

OTHERS = (
    *("vgg16_cifar10", "resnet18_cifar10", "resnet20_cifar10"),
    *("vgg16_imagenet", "resnet18_imagenet"),
)
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", [*overrides, "paths.output_dir=out"])


@pytest.mark.parametrize(
    "name", ["vgg8_cifar10", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)]
)
def test_an_experiment_is_what_the_paper_sets(name):
    config = composed(f"experiment=liang2018_{name}")
    settings = run_settings(config)
    assert settings.mapping.kernel_rows == "one"
    assert settings.mapping.differential
    assert settings.grain.name == "column"
    paper = {"vgg8": 0.721, "vgg16": 0.598, "resnet18": 0.442, "resnet20": 0.442}
    assert settings.ratio == paper[name.split("_")[0]]
    epochs = settings.schedule.prune_epochs + settings.schedule.finetune_epochs
    assert epochs == 60 if name.endswith("cifar10") else settings.schedule.finetune_epochs == 30


@pytest.mark.parametrize(
    "name", ["vgg8_cifar10", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)]
)
@pytest.mark.parametrize(("typed", "epochs"), [("none", (0, 0, 0)), ("from_dense", (0, 2, 4))])
def test_a_schedule_that_is_typed_is_not_overruled_by_the_experiment(name, typed, epochs):
    config = composed(f"experiment=liang2018_{name}", f"schedule={typed}")
    found = run_settings(config).schedule
    assert (found.dense_epochs, found.prune_epochs, found.finetune_epochs) == epochs


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("adamw", 1e-3)])
def test_an_optimizer_that_is_typed_keeps_its_learning_rate(optimizer, rate):
    config = composed("experiment=liang2018_vgg8_cifar10", f"optimizer={optimizer}")
    assert config.optimizer.lr == rate


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_a_valid_choice_on_its_own_and_in_an_experiment(method):
    alone = run_settings(composed(f"method={method}"))
    inside = run_settings(composed("experiment=liang2018_vgg8_cifar10", f"method={method}"))
    for key in ("solver", "budget", "procedure", "reorder"):
        assert getattr(alone, key) == getattr(inside, key)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A folder of the shape of ImageNet: train and val, a folder a class, JPEG files."""
    folder = tmp_path_factory.mktemp("imagenet")
    generator = np.random.default_rng(0)
    for split, images in (("train", 6), ("val", 2)):
        for label in ("n01440764", "n01443537"):
            (folder / split / label).mkdir(parents=True)
            for i in range(images):
                pixels = generator.integers(0, 256, (240, 260, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{label}_{i}.JPEG")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "saved"), [("resnet18_imagenet", 0.442), ("vgg16_imagenet", 0.598)]
)
def test_an_imagenet_experiment_runs(train, tmp_path, imagenet, name, saved):
    code, _, err = train(
        tmp_path, f"experiment=liang2018_{name}", f"data.dir={imagenet}", "model.pretrained=false",
        "method=magnitude_step", "data.batch_size=2", "data.num_workers=0", "data.val_fraction=0.3",
        "trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.limit_test_batches=1",
        "trainer.limit_val_batches=1", "logger=csv", "callbacks=none",
    )  # fmt: skip
    assert code == 0, err
    (run,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    found = json.loads((run / "summary.json").read_text())
    assert found["compute_saved"] == pytest.approx(saved, abs=0.001)
    assert found["method"] == "magnitude_step"
