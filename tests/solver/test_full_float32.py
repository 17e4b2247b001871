"""Products of float32 are in float32 inside, as the process has them outside."""

import pytest
import torch

import crosspruner as cp
from crosspruner.solver.full_float32 import full_float32


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_the_process_keeps_its_setting(before):
    torch.set_float32_matmul_precision(before)
    with full_float32():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ZeroDivisionError), full_float32():
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before


def test_settings_of_single_backends_are_kept_too():
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("older PyTorch: one setting for all backends")
    matmul.fp32_precision = "tf32"
    with full_float32():
        assert matmul.fp32_precision == "ieee"
    assert matmul.fp32_precision == "tf32"


def test_pruning_does_not_depend_on_it():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.ReLU()
        )
        images = torch.randn(16, 3, 10, 10)
    how = {"crossbar": "32x16", "ratio": 0.5, "exclude": []}
    full = cp.prune(network, [images], **how)
    torch.set_float32_matmul_precision("medium")
    less = cp.prune(network, [images], **how)
    for name, weight in full.model.state_dict().items():
        torch.testing.assert_close(less.model.state_dict()[name], weight, rtol=1e-5, atol=1e-6)
