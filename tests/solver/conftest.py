"""Shared by the tests of the solvers."""

import pytest
import torch

from crosspruner.errors import SolverError
from crosspruner.solver.pivot import PivotTable


@pytest.fixture
def refuse_float32(monkeypatch):
    """`refuse_float32()`: from now on no pivot table is had in float32; the list of those tried."""

    def begin():
        tried = []

        def table(problem, dtype):
            tried.append(dtype)
            if dtype == torch.float32:
                raise SolverError("too close to singular")
            return PivotTable(problem, dtype)

        monkeypatch.setattr("crosspruner.solver.pivot.PivotTable", table)
        return tried

    return begin
