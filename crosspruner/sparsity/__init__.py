"""What may go: groups of weights that live or die together, and projections onto a crossbar budget.

groups.py   which weights of a layer form which group (crossbar or column grain)
masking.py  the best mask that fits a number of crossbars exactly
"""

from crosspruner.sparsity.groups import GroupLayout as GroupLayout
from crosspruner.sparsity.masking import project as project
