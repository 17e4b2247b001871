"""Which groups go: mask solvers on pure tensors, knowing no network and no trainer.

moments -> LayerProblem -> choose_mask (a solver by name) -> mask (B, P)
"""

from crosspruner.solver.allocate import share_out as share_out
from crosspruner.solver.lgd import lgd_rpp as lgd_rpp
from crosspruner.solver.lgd_refit import lgd_rpp_refit as lgd_rpp_refit
from crosspruner.solver.obs import obs_group as obs_group
from crosspruner.solver.problem import LayerProblem as LayerProblem
from crosspruner.solver.refit import RefitProblem as RefitProblem
from crosspruner.solver.registry import SOLVERS as SOLVERS
from crosspruner.solver.registry import choose_mask as choose_mask
from crosspruner.solver.rpp import relaxed_scores as relaxed_scores
from crosspruner.solver.rpp import rpp as rpp
from crosspruner.solver.swap import swap_descent as swap_descent
