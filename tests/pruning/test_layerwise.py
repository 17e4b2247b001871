"""The walk along a network: one pass and passes of their own come to the same result."""

import contextlib
import copy

import pytest
import torch
from torch import nn

import crosspruner as cp
from crosspruner.pruning import layer_walk
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.training import build_model


def residual_net():
    """ResNet20 of 4 to 16 FMs, its batch norms with statistics of images like `images()`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_model("resnet20", 4, (8, 8), width=0.25).double()
        with torch.no_grad():
            for _ in range(3):
                net.train()(images()[0].double())
    return net.eval()


def images():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(3, 24, 3, 8, 8, generator=generator)
    return list(noise + noise.mean((3, 4), keepdim=True) * 3)


def prune(net, **given):
    settings = {"crossbar": "36x8", "mapping": "folded", "kin": 2, "kout": 2, "ratio": 0.4}
    return cp.prune(net, images(), **{**settings, "solver": "magnitude", **given})


@pytest.mark.parametrize("refit", [True, False])
def test_one_pass_gives_what_a_pass_for_each_layer_gives(monkeypatch, refit):
    net = residual_net()
    ways = []
    for held in (2**31, 0):
        monkeypatch.setattr(layer_walk, "PASS_BYTES", held)
        ways.append(prune(net, refit=refit))
    one, each = ways
    for name, mask in one.masks.items():
        assert torch.equal(mask, each.masks[name])
    for (key, ours), theirs in zip(
        one.model.state_dict().items(), each.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=lambda m, k=key: f"{k}: {m}")
    assert one.errors == pytest.approx(each.errors)


def test_the_dense_network_is_run_once(monkeypatch):
    """Its outputs are taken in while its gradients are looked at."""
    net, passed = residual_net(), []
    net.conv1.register_forward_hook(lambda _m, x, _: passed.append(len(x[0])))
    number, few = sum(map(len, images())), layer_walk._TO_LOOK_AT
    watched = prune(net)
    # The plan is made of a run without numbers, which may or may not call the hook.
    looked = [n for n in passed if n > few]
    assert sum(looked) == 2 * number  # and the pruned copy

    def runs_alone(walk):
        return contextlib.nullcontext(walk.batches)

    passed.clear()
    monkeypatch.setattr(layer_walk.Walk, "watching", runs_alone)
    alone = prune(net)
    assert sum(n for n in passed if n > few) == 3 * number
    for name, mask in alone.masks.items():
        assert torch.equal(mask, watched.masks[name])
    assert alone.errors == pytest.approx(watched.errors)


def test_what_is_run_in_part_is_not_taken_in():
    net = residual_net()
    users = {"layer1.0.conv1": ["layer1.0.conv1"]}
    walk = layer_walk.Walk(
        copy.deepcopy(net),
        net,
        users,
        [b.double() for b in images()],
        LayerwiseSettings(),
        torch.Generator().manual_seed(0),
    )
    with walk.watching() as parts, torch.no_grad():
        net(parts[0])
    assert len(parts) == 2  # of 64 and 8 images
    assert walk._targets is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    with walk.watching() as parts, torch.no_grad():
        for part in parts:
            net(part)
    assert [len(t.values) for t in walk._targets["layer1.0.conv1"]] == [64, 8]
    norms = {n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert set(walk.references) == norms


def test_the_pruned_network_sees_itself_and_aims_at_the_dense_one():
    """The last layer's refit is least squares from the pruned network's inputs to dense outputs."""
    net = residual_net()
    result = prune(net, exclude=["conv1", "fc", "layer3.2.conv1"], ratio=0.3)
    inputs, outputs = [], []
    last = "layer3.2.conv2"
    result.model.get_submodule(last).register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    dense = copy.deepcopy(net)
    dense.get_submodule(last).register_forward_hook(lambda _, x, y: outputs.append(y))
    with torch.no_grad():
        for batch in images():
            result.model(batch.double())
            dense(batch.double())
    x, y = torch.cat(inputs), torch.cat(outputs)
    ours = result.model.get_submodule(last)
    with torch.no_grad():
        got = ours(x)
    free = copy.deepcopy(ours)  # the dense weights where they were kept: what no refit would give
    kept = free.weight != 0
    with torch.no_grad():
        free.weight.copy_(net.get_submodule(last).weight * kept)
        unfitted = free(x)

    def error(z):
        gap = z - y
        return (gap - gap.mean((0, 2, 3), keepdim=True)).square().sum()

    assert error(got) < 0.9 * error(unfitted)


def test_batch_norms_before_the_first_pruned_layer_stay_as_they_are():
    net = residual_net()
    result = prune(net, include=["layer3.*"], ratio=0.2)
    before, after = net.state_dict(), result.model.state_dict()
    for key, value in before.items():
        if key.startswith(("conv1", "bn1", "layer1", "layer2")):
            assert torch.equal(value, after[key]), key
    assert not torch.equal(before["layer3.2.bn2.running_mean"], after["layer3.2.bn2.running_mean"])


class Twice(nn.Module):
    """A layer that runs twice per image: no single pass can prune it."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x).relu()
        x = self.again(self.again(x).relu()).relu()
        return self.head(x.mean((2, 3)))


def test_a_layer_that_runs_twice_is_pruned_once():
    torch.manual_seed(0)
    result = prune(Twice().double(), ratio=0.3)
    assert list(result.masks) == ["again"]
    assert result.saved == pytest.approx(0.3, abs=0.02)
    kept = result.plan.layer("again")
    assert kept.compute_crossbars < result.dense_plan.layer("again").compute_crossbars
