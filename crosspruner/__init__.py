"""Crossbar-aware pruning of neural networks.

    model + crossbar -> plan (hardware) -> groups (sparsity) -> masks (solver, pruning) -> run

    import crosspruner as cp
    plan = cp.plan_model(model, (3, 32, 32), "256x256", mapping="semifolded")
    print(plan.table())
    logits = cp.simulate(plan, model, images)
    logits = cp.simulate(plan, model, images, cp.OnDevice(cp.Device(lognormal=0.1), seed=0))
    result = cp.prune(model, calibration_loader, "256x256", ratio=0.5)
    trainer = Trainer(callbacks=[cp.CrossbarPruning("256x256", ratio=0.5, input_shape=(3, 32, 32))])
    pruning = cp.attach(model, optimizer, "256x256", total_steps=steps, input_shape=(3, 32, 32))

Follows Liang et al., "Crossbar-Aware Neural Network Pruning", IEEE Access 2018.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from crosspruner import _torchvision_mend as _torchvision_mend  # first: others import torchvision
from crosspruner.errors import CrossprunerError as CrossprunerError
from crosspruner.hardware import Cost as Cost
from crosspruner.hardware import Crossbar as Crossbar
from crosspruner.hardware import Device as Device
from crosspruner.hardware import LayerPlan as LayerPlan
from crosspruner.hardware import MappingSpec as MappingSpec
from crosspruner.hardware import OnDevice as OnDevice
from crosspruner.hardware import Plan as Plan
from crosspruner.hardware import UnitCosts as UnitCosts
from crosspruner.hardware import chip_accuracy as chip_accuracy
from crosspruner.hardware import device_weights as device_weights
from crosspruner.hardware import plan_model as plan_model
from crosspruner.hardware import simulate as simulate
from crosspruner.solver import lgd_rpp as lgd_rpp

if TYPE_CHECKING:
    from crosspruner.pruning.attach import Attached as Attached
    from crosspruner.pruning.attach import attach as attach
    from crosspruner.pruning.budget_settings import BudgetSettings as BudgetSettings
    from crosspruner.pruning.callback import CrossbarPruning as CrossbarPruning
    from crosspruner.pruning.hold import Held as Held
    from crosspruner.pruning.hold import hold as hold
    from crosspruner.pruning.hold_callback import HeldMasks as HeldMasks
    from crosspruner.pruning.layerwise_callback import LayerwisePruning as LayerwisePruning
    from crosspruner.pruning.layerwise_settings import LayerwiseSettings as LayerwiseSettings
    from crosspruner.pruning.oneshot import PruneResult as PruneResult
    from crosspruner.pruning.oneshot import prune as prune
    from crosspruner.pruning.schedule import PruningSchedule as PruningSchedule
    from crosspruner.pruning.step_settings import StepSettings as StepSettings

# Lightning takes seconds to import, and planning a model does not need it.
_ON_DEMAND = {
    "Attached": "crosspruner.pruning.attach",
    "attach": "crosspruner.pruning.attach",
    "BudgetSettings": "crosspruner.pruning.budget_settings",
    "CrossbarPruning": "crosspruner.pruning.callback",
    "Held": "crosspruner.pruning.hold",
    "HeldMasks": "crosspruner.pruning.hold_callback",
    "LayerwisePruning": "crosspruner.pruning.layerwise_callback",
    "LayerwiseSettings": "crosspruner.pruning.layerwise_settings",
    "PruneResult": "crosspruner.pruning.oneshot",
    "PruningSchedule": "crosspruner.pruning.schedule",
    "StepSettings": "crosspruner.pruning.step_settings",
    "hold": "crosspruner.pruning.hold",
    "prune": "crosspruner.pruning.oneshot",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("crosspruner")
    if name in _ON_DEMAND:
        from importlib import import_module

        return getattr(import_module(_ON_DEMAND[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ON_DEMAND])
