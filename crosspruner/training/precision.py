"""Whether reduced precision pays on the processor at hand."""

import torch

WITHOUT_BFLOAT16 = ("NO AVX", "AVX2")
"""What torch calls the x86 processors on which oneDNN has to emulate bfloat16."""


def bfloat16_is_emulated(device: torch.device) -> bool:
    """Whether bfloat16 convolutions run through slow stand-ins there: x86 CPUs without AVX-512.

    VGG8 and ResNet20 trained 11 to 13 times slower in bfloat16 than in float32 on such a CPU.
    """
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in WITHOUT_BFLOAT16


def slow_bfloat16(typed: str) -> str:
    """The warning, with the option that asks for bfloat16."""
    return (
        f"{typed} on a processor without AVX-512: bfloat16 is emulated there, some ten times "
        "slower than float32. Leave it out on this machine."
    )
