"""Accuracy on chips: hits counted, by weights and by arrays alike, batch norms measured."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from crosspruner.errors import ConfigError
from crosspruner.hardware import (
    Crossbar,
    Device,
    MappingSpec,
    chip_accuracy,
    device_weights,
    needs_arrays,
    plan_model,
)
from crosspruner.hardware.cells import stuck

from .test_nonideal import network, pruned_plan


def images(count=60):
    torch.manual_seed(1)
    return [(torch.randn(count, 3, 8, 6, dtype=torch.float64), torch.randint(5, (count,)))]


def test_accuracy_of_chips_counts_hits():
    model, batches = network(), images()
    model[5].bias.data[2] = 1e6  # always says 2
    plan = pruned_plan(model, "folded")
    share = float((batches[0][1] == 2).double().mean())
    device = Device(lognormal=0.1)
    assert chip_accuracy(plan, model, device, [0, 1], batches).tolist() == [share] * 2
    assert chip_accuracy(plan, model, device, [0], batches, copies="own").tolist() == [share]


def test_accuracy_by_weights_and_by_arrays_agree_where_weights_are_held_once():
    model, batches = network(), images()
    plan = pruned_plan(model, "folded")
    device = Device(lognormal=0.5, input_bits=4)
    fast = chip_accuracy(plan, model, device, [0, 1, 2], batches)
    exact = chip_accuracy(plan, model, device, [0, 1, 2], batches, copies="own")
    assert fast.tolist() == exact.tolist()
    assert len(set(fast.tolist())) > 1


def test_faults_off_the_diagonal_of_a_bundle_need_arrays():
    # Two conv groups of one FM each on a 2 x 2 crossbar: two of its four weights are no weights.
    module = nn.Conv2d(2, 2, 1, groups=2, bias=False).double()
    nn.init.ones_(module.weight)
    module = nn.Sequential(module, nn.Flatten())
    x = torch.tensor([[1.0, 10.0]], dtype=torch.float64)[..., None, None]
    batches = [(x, torch.tensor([0]))]
    device = Device(stuck_on=0.2)
    found = {}
    for grouped in ("apart", "block_diagonal"):
        spec = MappingSpec("folded", grouped=grouped)
        plan = plan_model(module, (2, 1, 1), Crossbar(2, 4, differential=True), spec, exclude=())
        assert needs_arrays(plan, module, device) == (grouped == "block_diagonal")
        assert not needs_arrays(plan, module, Device(gaussian=0.1))
        assert needs_arrays(plan, module, Device(gaussian=0.1), "own")
        seed = next(s for s in range(999) if stuck(device, s, "0", torch.arange(8)).tolist()
                    == [0, 0, 0, 0, 1, 0, 0, 0])  # fmt: skip
        # In a bundle that cell puts input 1 into output 0: 1 + 10 against 10. Apart, it is in row 1
        # of a crossbar that has no row 1 to drive.
        found[grouped] = float(chip_accuracy(plan, module, device, [seed], batches))
    assert found == {"apart": 0.0, "block_diagonal": 1.0}


@pytest.mark.filterwarnings("ignore:.*computed anew in each pass.*")
def test_weights_that_are_computed_need_arrays():
    module = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    plan = plan_model(module, (3,), Crossbar(4, 4, differential=True), exclude=())
    assert needs_arrays(plan, module, Device(weight_bits=8))
    with pytest.raises(ConfigError, match="no plain parameter"):
        device_weights(plan, module, Device(weight_bits=8), [0])


def test_a_device_without_randomness_is_computed_once():
    calls = []
    plan = pruned_plan(network(), "folded")
    found = chip_accuracy(
        plan, network(), Device(weight_bits=4), range(9), images(), advance=lambda: calls.append(1)
    )
    assert (len(found), len(set(found.tolist())), len(calls)) == (9, 1, 1)


def test_accuracy_with_a_calibrated_adc_and_read_noise():
    model, batches = network(), images(20)
    plan = pruned_plan(model, "liang2018")
    device = Device(weight_bits=6, input_bits=6, adc_bits=7, read_noise=0.01)
    found = chip_accuracy(plan, model, device, [0, 1], batches, [batches[0][0][:5]])
    assert found.shape == (2,)


def test_accuracy_refuses_what_it_cannot_do():
    plan = pruned_plan(network(), "folded")
    with pytest.raises(ConfigError, match="copies=all"):
        chip_accuracy(plan, network(), Device(), [0], images(), copies="all")
    with pytest.raises(ConfigError, match="no images"):
        chip_accuracy(plan, network(), Device(), [0], [])
    for seeds in (2, None, [0.5], "ab"):
        with pytest.raises(ConfigError, match=r"such as range\(5\)"):
            chip_accuracy(plan, network(), Device(), seeds, images())


def test_batches_of_another_form_are_refused():
    plan, ((x, labels),) = pruned_plan(network(), "folded"), images(4)
    for batches, message in (
        ([x], "batch is a Tensor: give"),
        ((x, labels), "batch is a Tensor: give"),
        ([(x,)], "batch is a tuple: give"),
        ([{"images": x}], "batch is a dict: give"),
        ([(x, labels[:3])], "one label for each image"),
        (TensorDataset(x, labels), "of a single image"),
    ):
        with pytest.raises(ConfigError, match=message):
            chip_accuracy(plan, network(), Device(), [0], batches)


@pytest.mark.parametrize("copies", ["one", "own"])
def test_a_loader_does_as_well_as_a_list(copies):
    plan, batches = pruned_plan(network(), "folded"), images(8)
    device = Device(lognormal=0.5)
    loader = DataLoader(TensorDataset(*batches[0]), batch_size=4)
    found = chip_accuracy(plan, network(), device, [0, 1], loader, copies=copies)
    assert (
        found.tolist()
        == chip_accuracy(plan, network(), device, [0, 1], batches, copies=copies).tolist()
    )


def normed():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1),
        nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 4 * 3, 5),
    ).double()  # fmt: skip
    return model, pruned_plan(model, "folded")


@pytest.mark.parametrize("copies", ["one", "own"])
def test_batch_norms_are_measured_on_each_chip(copies):
    model, plan = normed()
    batches, device = images(), Device(lognormal=0.5)
    seen = batches[0][0]
    expected = []
    for seed in (0, 1):
        weights = {k: v[0] for k, v in device_weights(plan, model, device, [seed]).items()}
        chip = normed()[0]
        chip.load_state_dict(weights, strict=False)
        for norm in (chip[1], chip[4]):  # statistics of one batch, taken over as they are
            norm.momentum = 1.0
        chip.train()(seen)
        hits = chip.eval()(seen).argmax(1) == batches[0][1]
        expected.append(float(hits.double().mean()))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = chip_accuracy(plan, model, device, [0, 1], batches, copies=copies, norm_images=seen)
    assert found.tolist() == expected
    assert found.tolist() != chip_accuracy(plan, model, device, [0, 1], batches).tolist()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_batch_norms_are_measured_behind_calibrated_converters():
    model, plan = normed()
    device = Device(weight_bits=6, input_bits=6, adc_bits=7)
    batches = images(20)
    model[1].running_var *= 1e6  # nothing comes through the norm as it is
    found = [
        float(chip_accuracy(plan, model, device, [0], batches, [batches[0][0][:5]], norm_images=n))
        for n in (None, batches[0][0])
    ]
    ideal = normed()[0].train()(batches[0][0]).argmax(1)
    assert abs(found[1] - float((ideal == batches[0][1]).double().mean())) <= 0.1
    assert found[0] != found[1]


def test_the_model_is_left_as_it_was():
    model = network().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    chip_accuracy(pruned_plan(model, "folded"), model, Device(lognormal=0.5), [0], images())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert not model[0]._forward_pre_hooks
    x = images()[0][0]
    assert torch.equal(F.relu(model[0](x)), model[:2](x))
