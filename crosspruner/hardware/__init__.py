"""What the chip is: crossbars, how layers are laid out on them, and what they then compute.

Crossbar + model -> plan_model -> Plan (LayerPlan each: Tiling, Packing) -> simulate
Plan + UnitCosts -> plan.cost -> Cost: energy, latency and area per image
Plan + Device -> chip_accuracy (DeviceWeights as convolutions, or OnDevice array by array)
"""

from crosspruner.hardware.chips import chip_accuracy as chip_accuracy
from crosspruner.hardware.chips import needs_arrays as needs_arrays
from crosspruner.hardware.cost import Cost as Cost
from crosspruner.hardware.cost import UnitCosts as UnitCosts
from crosspruner.hardware.crossbar import Crossbar as Crossbar
from crosspruner.hardware.device import Device as Device
from crosspruner.hardware.effective import device_weights as device_weights
from crosspruner.hardware.integer import IntegerArithmetic as IntegerArithmetic
from crosspruner.hardware.layer_plan import LayerPlan as LayerPlan
from crosspruner.hardware.mapping import LayerGeometry as LayerGeometry
from crosspruner.hardware.mapping import MappingSpec as MappingSpec
from crosspruner.hardware.mapping import Tiling as Tiling
from crosspruner.hardware.mapping import choose_tiling as choose_tiling
from crosspruner.hardware.nonideal import OnDevice as OnDevice
from crosspruner.hardware.packing import Packing as Packing
from crosspruner.hardware.packing import count_blocks as count_blocks
from crosspruner.hardware.packing import pack as pack
from crosspruner.hardware.plan import Plan as Plan
from crosspruner.hardware.planning import plan_model as plan_model
from crosspruner.hardware.simulate import simulate as simulate
