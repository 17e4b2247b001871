import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from crosspruner.errors import CheckpointError
from crosspruner.training import WeightsReport, build_model, load_weights
from crosspruner.training.models.weights import strip_prefix


def net(seed: int = 0, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("vgg8", classes, image_size=(8, 8), width=0.0625)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors"])
def test_plain_state_dict(tmp_path, suffix):
    source, target = net(0), net(1)
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    assert not same(source, target)
    assert load_weights(target, path) == WeightsReport((), (), ())
    assert same(source, target)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
@pytest.mark.parametrize("prefix", ["net.", "module.", "_orig_mod.", "module.net."])
def test_wrapped_and_prefixed(tmp_path, wrapper, prefix):
    source, target = net(0), net(1)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3}, tmp_path / "a.ckpt")
    assert load_weights(target, tmp_path / "a.ckpt").complete
    assert same(source, target)


def test_strip_prefix_by_hand():
    one = torch.zeros(1)
    assert strip_prefix({"net.a.b": one, "other": one}, {"a.b"}) == {"a.b": one, "other": one}
    # "b" is a key of the model too, but most keys fit without a prefix
    assert strip_prefix({"a.b": one, "b": one}, {"a.b", "b"}) == {"a.b": one, "b": one}
    assert strip_prefix({"x": one}, {"y"}) == {"x": one}
    assert strip_prefix({}, {"y"}) == {}


def test_other_classes_fit_but_for_the_last_layer(tmp_path, caplog):
    source, target = net(0, classes=4), net(1, classes=5)
    head = {key: value.clone() for key, value in target.state_dict().items()}
    torch.save(source.state_dict(), tmp_path / "a.pt")
    report = load_weights(target, tmp_path / "a.pt")
    assert report == WeightsReport(mismatched=("classifier.2.weight", "classifier.2.bias"))
    assert "of another shape: 2 (classifier.2.weight, classifier.2.bias)" in caplog.text
    assert torch.equal(target.classifier[2].weight, head["classifier.2.weight"])
    assert torch.equal(target.features[0].weight, source.features[0].weight)


def test_missing_and_unexpected_keys_are_named(tmp_path, caplog):
    state = net(0).state_dict()
    del state["classifier.0.bias"]
    state["extra.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "a.pt")
    report = load_weights(net(1), tmp_path / "a.pt")
    assert report == WeightsReport(("classifier.0.bias",), ("extra.weight",), ())
    assert not report.complete
    assert str(report) == (
        "missing in the file: 1 (classifier.0.bias); not in the model: 1 (extra.weight)"
    )
    assert str(report) in caplog.text


def test_long_lists_of_keys_are_cut():
    report = WeightsReport(missing=tuple("abcdefgh"))
    assert str(report) == "missing in the file: 8 (a, b, c, d, e, f and 2 more)"


def test_weights_of_another_model_leave_the_model_alone(tmp_path):
    target, before = net(1), net(1)
    torch.save(build_model("resnet20", 4, width=0.25).state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"belongs to another model: 0 of 8 weights fit"):
        load_weights(target, tmp_path / "a.pt")
    assert same(target, before)


def test_weights_of_another_width(tmp_path):
    torch.save(build_model("vgg8", 4, (8, 8), width=0.125).state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"same model.name, model.width"):
        load_weights(net(), tmp_path / "a.pt")


class Whatever:
    pass


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "does not exist"),
        ("a.txt", b"x", r"must end in .pt, .pth, .ckpt, .safetensors"),
        ("a.pt", b"not a checkpoint", "no checkpoint|cannot be read"),
        ("a.pt", b"", "cannot be read"),
        ("a.safetensors", b"not a checkpoint", "cannot be read"),
        ("a.pt", Whatever(), "holds Python objects"),
        ("a.pt", {"epoch": 3}, "holds no state dict"),
        ("a.pt", [1, 2], "holds no state dict"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))} .*({message})"):
        load_weights(net(), path)


def test_a_folder_instead_of_a_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder. Give a file, .*best.ckpt or .*safet"):
        load_weights(net(), tmp_path)
