"""Pruned, mapped networks for other people's tools.

onnx_model: any runtime. neurosim: DNN+NeuroSim. pimcomp: PIMCOMP-NN. limits: CrossSim, aihwkit.
"""

from crosspruner.hardware.export.limits import export_limits as export_limits
from crosspruner.hardware.export.neurosim import export_neurosim as export_neurosim
from crosspruner.hardware.export.onnx_model import export_onnx as export_onnx
from crosspruner.hardware.export.pimcomp import export_pimcomp as export_pimcomp
