"""The masks that a run folder holds against its weights, without a run."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from crosspruner.errors import RunFolderError
from crosspruner.evaluation import _packed
from crosspruner.hardware import Crossbar, MappingSpec, plan_model
from crosspruner.pruning.saving import save_pruned


@pytest.mark.parametrize("outputs", [2, 3])
def test_masks_of_transposed_convolutions_are_read_by_output(tmp_path, outputs):
    # Its weight is (input, output); of output 0, input 1 is pruned.
    network = nn.ConvTranspose2d(2, outputs, 1, bias=False)
    nn.init.ones_(network.weight)
    network.weight.data[1, 0] = 0.0
    network = nn.Sequential(network)
    settings = SimpleNamespace(
        crossbar=Crossbar(1, 4), mapping=MappingSpec("folded"), include=("*",), exclude=(),
        grain=SimpleNamespace(name="column"),
    )  # fmt: skip
    plan = plan_model(network, (2, 1, 1), Crossbar(1, 4), "folded", "column", exclude=())
    mask = torch.ones(outputs, 2, dtype=torch.bool)
    mask[0, 1] = False
    save_pruned(tmp_path / "pruned", network, plan.pruned({"0": mask}), {"0": mask})
    found = _packed(tmp_path, settings, network, (2, 1, 1))
    assert torch.equal(found.layers[0].mask, mask)
    network[0].weight.data[1, 0] = 1.0
    save_pruned(tmp_path / "pruned", network, plan.pruned({"0": mask}), {"0": mask})
    with pytest.raises(RunFolderError, match="1 weights of 0 are not zero"):
        _packed(tmp_path, settings, network, (2, 1, 1))
