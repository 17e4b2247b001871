"""Wire resistance: what a column current is once the wires between the cells are not free.

Rows are driven from the left of column 0, columns are read below the last row at virtual ground,
and every step from cell to cell, the first and the last included, has the same resistance. The
network is linear, so that wires of any resistance only change the conductance that each cell seems
to have.
"""

import numpy as np
import torch
from torch import Tensor


def seen_conductance(conductance: Tensor, ohms: float) -> Tensor:
    """What each cell seems to have, as far from its driver and its reader as it is.

    To first order in the resistance, cell (i, j) sees its voltage lowered by the currents of its
    own row, each over the wire that it shares with them, and its current lowered likewise by those
    of its column: by the fraction x = ohms * (sum_m min(j, m) G_im + sum_m min(R-i, R-m) G_mj),
    counted in steps of wire. G / (1 + x) equals G (1 - x) to first order, and stays positive where
    the drop is large.

    Args:
        conductance: (..., rows, columns) of the whole array, in siemens.
        ohms: of the wire between two neighbouring cells.

    Returns:
        The same shape; column currents are voltages @ this.

    Source: our reading of the usual first-order treatment. Measured against `nodal_currents` at
    1 ohm, all cells on: within 0.1 % for 32 x 32 cells of 10 kOhm, 1 % for 128 x 128 of 25 kOhm,
    15 % for 256 x 256 of 10 kOhm, where four fifths of the current are lost.
    """
    along_row = _shared(conductance)
    along_column = _shared(conductance.flip(-2).mT).mT.flip(-2)
    return conductance / (1 + ohms * (along_row + along_column))


def _shared(conductance: Tensor) -> Tensor:
    """sum_m (min(j, m) + 1) G_m along the last axis: wire steps shared with each other cell."""
    beyond = conductance.flip(-1).cumsum(-1).flip(-1)
    return beyond.cumsum(-1)


def nodal_currents(conductance: Tensor, voltages: Tensor, ohms: float) -> Tensor:
    """The exact column currents, by Kirchhoff's law at each of the 2 * rows * columns nodes.

    Args:
        conductance: (rows, columns), siemens.
        voltages: (rows,) of the drivers, volt.
        ohms: of the wire between two neighbouring cells, above 0.

    Returns:
        (columns,) currents in ampere, float64.
    """
    from scipy.sparse import coo_matrix  # a slow import, for a reference that runs seldom need
    from scipy.sparse.linalg import spsolve

    cells = conductance.double().numpy()
    rows, columns = cells.shape
    wire = 1 / ohms
    row_node = np.arange(rows * columns).reshape(rows, columns)
    column_node = row_node + rows * columns
    links = [
        (row_node.ravel(), column_node.ravel(), cells.ravel()),
        (row_node[:, :-1].ravel(), row_node[:, 1:].ravel(), np.full(rows * (columns - 1), wire)),
        (column_node[:-1].ravel(), column_node[1:].ravel(), np.full((rows - 1) * columns, wire)),
    ]
    here, there, value = (np.concatenate(part) for part in zip(*links, strict=True))
    ends = np.concatenate([row_node[:, 0], column_node[-1]])  # wires to drivers and to ground
    i = np.concatenate([here, there, here, there, ends])
    j = np.concatenate([here, there, there, here, ends])
    g = np.concatenate([value, value, -value, -value, np.full(len(ends), wire)])
    size = 2 * rows * columns
    driven = np.zeros(size)
    driven[row_node[:, 0]] = wire * voltages.double().numpy()
    potential = spsolve(coo_matrix((g, (i, j)), shape=(size, size)).tocsc(), driven)
    return torch.from_numpy(potential[column_node[-1]] * wire)
