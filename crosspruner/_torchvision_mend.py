"""Lets torchvision import beside a torch build that its compiled operators do not fit.

The torchvision wheel on the package index is a CUDA build. Beside a CPU-only torch its operator
library does not load, and `import torchvision` (hence timm, torchmetrics, pytorch_lightning) fails
with "operator torchvision::nms does not exist" while registering fake kernels for `nms` and `qnms`.
crosspruner uses torchvision's data sets, transforms and models, none of which calls those
operators, so their schemas are declared here and the import is tried again. Where torchvision
imports as it is, nothing happens.
"""

import importlib
import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# A torch.library.Library takes its declarations along when it is collected: keep it alive.
_library: torch.library.Library | None = None


def mend_torchvision() -> bool:
    """Import torchvision, declaring its missing operator schemas if that is what stops it.

    Returns:
        True where the mend was needed, False where torchvision imports unaided.

    Raises:
        ImportError, RuntimeError: torchvision is absent, or fails for any other reason.
    """
    global _library
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _library is not None or "torchvision::nms does not exist" not in str(error):
            raise
    else:
        return False
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    importlib.import_module("torchvision")
    return True


mend_torchvision()
