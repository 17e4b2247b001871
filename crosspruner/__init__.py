"""Crossbar-aware pruning of neural networks.

    model + crossbar -> plan (hardware) -> groups (sparsity) -> masks (solver, pruning) -> run

Follows Liang et al., "Crossbar-Aware Neural Network Pruning", IEEE Access 2018.
"""

from crosspruner import _torchvision_mend as _torchvision_mend  # first: others import torchvision
from crosspruner.errors import CrossprunerError as CrossprunerError
