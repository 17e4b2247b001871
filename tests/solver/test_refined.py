"""Systems solved by float32 factors and a step in float64."""

import pytest
import torch

from crosspruner.errors import SolverError
from crosspruner.solver import refined
from crosspruner.solver.refined import solve_blocks, solve_systems


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Small systems, of several panels, the last one narrower."""
    monkeypatch.setattr(refined, "LEAST_ROWS", 4)
    monkeypatch.setattr(refined, "WIDTH", 5)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blocks(least=1e-2, systems=3, size=13, targets=2):
    """A matrix of 20 rows whose eigenvalues fall from 1 to `least`, and systems of its rows."""
    directions = torch.linalg.qr(normal(20, 20)).Q
    spectrum = torch.logspace(0, torch.tensor(least).log10().item(), 20, dtype=torch.float64)
    matrix = directions * spectrum @ directions.T
    matrix = (matrix + matrix.T) / 2
    rows = torch.stack([normal(20, seed=s).argsort()[:size].sort().values for s in range(systems)])
    return matrix, rows, normal(systems, size, targets, seed=9)


def exact(matrix, rows, target):
    return torch.linalg.solve(matrix[rows.unsqueeze(2), rows.unsqueeze(1)], target)


def test_two_equations_by_hand():
    matrix = torch.diag(torch.tensor([2.0, 4.0, 8.0, 5.0, 1.0])).double()
    matrix[0, 3] = matrix[3, 0] = 1.0
    rows = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    target = torch.tensor([[3.0, 4.0, 8.0, 6.0], [4.0, 16.0, 5.0, 7.0]]).double().unsqueeze(2)
    found = solve_blocks(matrix, matrix.float(), rows, target)
    expected = [[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 1.0, 7.0]]
    torch.testing.assert_close(found.squeeze(2), torch.tensor(expected).double())
    systems = torch.stack([matrix[:4, :4], matrix[1:, 1:]])
    torch.testing.assert_close(solve_systems(systems, target).squeeze(2), found.squeeze(2))


@pytest.mark.parametrize("size", [3, 4, 5, 13, 20])
@pytest.mark.parametrize("least", [1.0, 1e-2, 1e-4])
def test_solutions_have_the_digits_of_float64(size, least):
    matrix, rows, target = blocks(least, size=size)
    found = solve_blocks(matrix, matrix.float(), rows, target)
    expected = exact(matrix, rows, target)
    assert (found - expected).norm() < 1e-6 * expected.norm()  # 1e-3 with float32 alone
    systems = matrix[rows.unsqueeze(2), rows.unsqueeze(1)]
    whole = solve_systems(systems, target)
    torch.testing.assert_close(whole, found, rtol=1e-9, atol=1e-9 * float(found.abs().max()))


def test_float32_factors_are_used_where_they_hold(monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(refined, "cholesky", never)  # of float64
    matrix, rows, target = blocks()
    solve_blocks(matrix, matrix.float(), rows, target)
    solve_systems(matrix[rows.unsqueeze(2), rows.unsqueeze(1)], target)


@pytest.mark.parametrize("least", [1e-7, 1e-9, 1e-11])
def test_systems_that_float32_cannot_hold_are_solved_in_float64(least):
    matrix, rows, target = blocks(least)
    found = solve_blocks(matrix, matrix.float(), rows, target)
    systems = matrix[rows.unsqueeze(2), rows.unsqueeze(1)]
    assert (systems @ found - target).norm() < 1e-5 * target.norm()
    assert (systems @ solve_systems(systems, target) - target).norm() < 1e-5 * target.norm()


def test_a_singular_system_is_one_clear_error():
    matrix, rows, target = blocks()
    matrix[:, 3] = matrix[3] = 0.0
    rows[1, 0] = 3
    with pytest.raises(SolverError, match="raise damping"):
        solve_blocks(matrix, matrix.float(), rows, target)


def test_nothing_asked_for_is_nothing_at_all():
    matrix = blocks()[0]
    solution = solve_blocks(
        matrix, matrix.float(), torch.zeros(0, 7, dtype=torch.int64), torch.zeros(0, 7, 1).double()
    )
    assert solution.shape == (0, 7, 1)
