"""Which processors emulate bfloat16."""

import pytest
import torch

from crosspruner.training.precision import bfloat16_is_emulated, slow_bfloat16


@pytest.mark.parametrize(
    ("processor", "emulated"),
    [("NO AVX", True), ("AVX2", True), ("AVX512", False), ("AMX", False), ("DEFAULT", False)],
)
def test_x86_without_avx512_emulates_it(monkeypatch, processor, emulated):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    assert bfloat16_is_emulated(torch.device("cpu")) is emulated
    assert not bfloat16_is_emulated(torch.device("cuda"))


def test_the_warning_names_what_was_typed():
    assert slow_bfloat16("--bfloat16").startswith("--bfloat16 on a processor without AVX-512")
