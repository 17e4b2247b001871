"""What the chip is: crossbars, how layers are laid out on them, and what they then compute.

Crossbar + model -> plan_model -> Plan (LayerPlan each: Tiling, Packing) -> simulate
"""

from crosspruner.hardware.crossbar import Crossbar as Crossbar
from crosspruner.hardware.integer import IntegerArithmetic as IntegerArithmetic
from crosspruner.hardware.layer_plan import LayerPlan as LayerPlan
from crosspruner.hardware.mapping import LayerGeometry as LayerGeometry
from crosspruner.hardware.mapping import MappingSpec as MappingSpec
from crosspruner.hardware.mapping import Tiling as Tiling
from crosspruner.hardware.mapping import choose_tiling as choose_tiling
from crosspruner.hardware.packing import Packing as Packing
from crosspruner.hardware.packing import count_blocks as count_blocks
from crosspruner.hardware.packing import pack as pack
from crosspruner.hardware.plan import Plan as Plan
from crosspruner.hardware.plan import plan_model as plan_model
from crosspruner.hardware.simulate import simulate as simulate
