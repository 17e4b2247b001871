"""What an error at an output does to the predictions."""

import pytest
import torch
from torch import nn

from crosspruner.pruning.output_weights import output_weights
from crosspruner.training import build_model


def weights_of(net, names, batches):
    generator = torch.Generator().manual_seed(0)
    return output_weights(net.eval(), {n: [n] for n in names}, batches, generator)


def test_by_hand_on_one_linear_layer():
    """With logits z the Fisher diagonal is E (1[y = k] - p_k)^2 = p_k (1 - p_k) over drawn y."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    images = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(20_000, 2)
    found = weights_of(net, ["0"], [images])["0"]
    p = torch.tensor([2.0, 0.0]).double().softmax(0)
    torch.testing.assert_close(found, p * (1 - p), rtol=0.03, atol=0)


def test_they_predict_what_small_errors_do():
    """KL between the predictions with and without noise on one FM is half its weighed square."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_model("vgg8", 5, (8, 8), width=0.0625).double().eval()
    images = torch.randn(512, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    name = "features.7"
    found = weights_of(net, [name], [images])[name]
    with torch.no_grad():
        clean = net(images).log_softmax(1)
        for fm in found.argsort()[[0, -1]]:  # the least and the most important one
            noise = {}

            def disturb(_, __, output, fm=fm, noise=noise):
                draw = torch.randn(output[:, fm].shape, generator=torch.Generator().manual_seed(2))
                noise["energy"] = 1e-6 * draw.square().mean()
                output = output.clone()
                output[:, fm] += 1e-3 * draw
                return output

            hook = net.get_submodule(name).register_forward_hook(disturb)
            noisy = net(images).log_softmax(1)
            hook.remove()
            divergence = (clean.exp() * (clean - noisy)).sum(1).mean()
            expected = 0.5 * found[fm] * noise["energy"]
            assert float(divergence) == pytest.approx(float(expected), rel=0.5)


def test_nothing_about_the_network_changes():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 2))
    net[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    weights = weights_of(net, ["0", "3"], [torch.randn(4, 1, 4, 4)] * 2)
    assert {name: len(w) for name, w in weights.items()} == {"0": 3, "3": 2}
    assert all(bool((w > 0).any()) for w in weights.values())
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in net.parameters())
    assert not net[0]._forward_hooks


def test_a_network_without_class_scores_has_no_weights():
    class Maps(nn.Sequential):
        def forward(self, x):
            return {"maps": super().forward(x)}

    net = Maps(nn.Conv2d(1, 3, 3))
    assert weights_of(net, ["0"], [torch.randn(4, 1, 4, 4)]) == {}
