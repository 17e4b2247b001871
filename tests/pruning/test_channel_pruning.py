"""Whole channels: the zeroed network is the smaller one, in what it computes and what it takes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import crosspruner as cp
from crosspruner.errors import BudgetError, ConfigError
from crosspruner.hardware import plan_model
from crosspruner.hardware.mapping_spec import MappingSpec
from crosspruner.pruning.budget import prunable_layers
from crosspruner.pruning.channel_pruning import remove_channels

tp = pytest.importorskip("torch_pruning")


class Residual(nn.Module):
    """A residual block, batch norms, a flatten into a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 8, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8 * 16, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)))
        y = F.relu(self.first_norm(self.first(x)))
        x = F.relu(x + self.second_norm(self.second(y)))
        return self.last(F.relu(self.hidden(x.flatten(1))))


def trained():
    torch.manual_seed(0)
    network = Residual().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network


IMAGES = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
SPEC = MappingSpec(name="folded", kin=2, kout=2)


def planned(network):
    plan = plan_model(network, (2, 4, 4), "18x8", SPEC, "column", exclude=["last"])
    return plan, prunable_layers(plan, "column")


def smaller(network):
    """The network that is left, built by cutting the dead channels out of tensors."""
    cut = copy.deepcopy(network)
    graph = tp.DependencyGraph().build_dependency(cut, IMAGES[:1])
    for name in ("stem", "first", "hidden"):
        module = cut.get_submodule(name)
        dead = (module.weight.flatten(1).abs().sum(1) == 0).nonzero().flatten().tolist()
        if dead:
            handler = (
                tp.prune_conv_out_channels if name != "hidden" else tp.prune_linear_out_channels
            )
            graph.get_pruning_group(module, handler, dead).prune()
    return cut.eval()


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_the_zeroed_network_is_the_smaller_one(ratio):
    network = trained()
    plan, layouts = planned(network)
    masks, orders = remove_channels(network, plan, layouts, ratio, IMAGES)
    cut = smaller(network)
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in network.parameters())
    torch.testing.assert_close(network(IMAGES), cut(IMAGES), rtol=1e-4, atol=1e-5)
    packed = plan.pruned(masks, "column", orders)
    own = plan_model(cut, (2, 4, 4), "18x8", SPEC, "column", exclude=["last"])
    ours = {layer.name: layer.compute_crossbars for layer in packed.layers}
    theirs = {layer.name: layer.compute_crossbars for layer in own.layers}
    for name in layouts:
        assert ours[name] == theirs[name]
    assert packed.compute_crossbars <= (1 - ratio) * plan.compute_crossbars


def test_dead_channels_stay_dead_while_training():
    network = trained()
    plan, layouts = planned(network)
    remove_channels(network, plan, layouts, 0.5, IMAGES)
    dead = {n: p == 0 for n, p in network.named_parameters()}
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(network(IMAGES), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        assert bool((parameter[dead[name]] == 0).all()), name
    assert sum(int(mask.sum()) for mask in dead.values()) > 100


def test_one_call_prunes_by_channels_and_measures_batch_norms():
    network = trained()
    given = {"solver": "torch_pruning", "budget": "global", "refit": False, "ratio": 0.4}
    result = cp.prune(network, [IMAGES], "18x8", SPEC, exclude=["last"], **given)
    assert result.saved >= 0.4
    zeros = sum(int((p == 0).sum()) for p in result.model.parameters())
    assert zeros > 50
    assert bool(result.model(IMAGES).isfinite().all())
    again = cp.prune(network, [IMAGES], "18x8", SPEC, exclude=["last"], **given)
    assert all(bool((result.masks[n] == again.masks[n]).all()) for n in result.masks)


def test_what_cannot_be_done_is_said():
    network = trained()
    plan, layouts = planned(network)
    with pytest.raises(BudgetError, match="largest feasible ratio"):
        remove_channels(network, plan, layouts, 0.99, IMAGES)
    given = {"solver": "torch_pruning", "budget": "global"}
    with pytest.raises(ConfigError, match=r"procedure\.refit=false"):
        cp.prune(network, [IMAGES], "18x8", SPEC, **given)
    with pytest.raises(ConfigError, match="grain=column"):
        cp.prune(network, [IMAGES], "18x8", SPEC, grain="crossbar", refit=False, **given)


def test_the_crossbars_compute_what_the_network_does():
    given = {"solver": "torch_pruning", "budget": "global", "refit": False, "ratio": 0.4}
    result = cp.prune(trained(), [IMAGES], "18x8", SPEC, exclude=["last"], **given)
    logits = cp.simulate(result.plan, result.model, IMAGES)
    torch.testing.assert_close(logits.float(), result.model(IMAGES), rtol=1e-4, atol=1e-4)
