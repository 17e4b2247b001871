"""Accuracies before fine-tuning: a row for each combination asked for, on images of a folder."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from crosspruner.training import build_model


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("oneshot_table")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A thin VGG8 and a folder of 32 images of two classes."""
    folder = tmp_path_factory.mktemp("oneshot")
    torch.manual_seed(0)
    save_file(build_model("vgg8", 2, width=0.0625).state_dict(), folder / "net.safetensors")
    drawn = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 32, 32, 3), dtype=np.uint8)
    for split, classes in zip(("train", "test"), drawn, strict=True):
        for label, images in enumerate(classes):
            (folder / split / str(label)).mkdir(parents=True)
            for i, image in enumerate(images):
                Image.fromarray(image).save(folder / split / str(label) / f"{i}.png")
    return [
        "--weights", str(folder / "net.safetensors"), "--data", str(folder),
        "--width", "0.0625", "--crossbar", "36x36", "--mapping", "folded",
        "--ratio", "0.5", "--images", "16",
    ]  # fmt: skip


def rows_of(result):
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("| c")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_row_for_each_combination_asked_for(script, arguments):
    options = ["--grain", "crossbar", "--solver", "magnitude", "--solver", "lgd_rpp"]
    result = CliRunner().invoke(script.main, [*arguments, *options, "--reorder", "none"])
    rows = rows_of(result)
    assert [row[1:5] for row in rows] == [
        ["magnitude", "no", "none", "uniform"],
        ["lgd_rpp", "no", "none", "uniform"],
        ["magnitude", "yes", "none", "uniform"],
        ["lgd_rpp", "yes", "none", "uniform"],
        ["lgd_rpp", "yes", "none", "global"],
    ]
    assert {row[0] for row in rows} == {"crossbar"}
    saved = {float(row[6].rstrip("%")) for row in rows}
    assert len(saved) == 1, "one currency: every row saves the same"
    assert saved.pop() == pytest.approx(50, abs=2)
    assert "tested in float32" in result.output


def test_bfloat16_is_for_the_test_alone(script, arguments, monkeypatch):
    seen = []

    def accuracy(net, loader, bfloat16):
        seen.append((next(net.parameters()).dtype, bfloat16))
        return 0.5

    monkeypatch.setattr(script, "accuracy", accuracy)
    options = ["--grain", "column", "--solver", "magnitude", "--reorder", "tetris", "--bfloat16"]
    result = CliRunner().invoke(script.main, [*arguments, *options])
    assert [row[1:4] for row in rows_of(result)] == [["magnitude", "yes", "tetris"]]
    assert seen == [(torch.float32, True)] * 2
    assert "tested in bfloat16" in result.output


def test_accuracy_counts_images_not_batches(script):
    net = torch.nn.Flatten()  # the logits are the images
    right = torch.eye(3).view(3, 3, 1, 1)
    loader = [(right, torch.arange(3)), (right[:1], torch.tensor([2]))]
    for bfloat16 in (False, True):
        assert script.accuracy(net, loader, bfloat16) == 0.75
