"""The solvers on a GPU: the masks of the CPU where nothing is drawn, as good ones where it is."""

from dataclasses import fields, replace

import pytest
import torch

from crosspruner.solver import SOLVERS, RefitProblem, choose_mask

from .test_refit import random_problem
from .test_registry import problem as layer_problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def on_gpu(problem):
    """The same problem with all of its tensors on the GPU."""
    moved = {}
    for field in fields(problem):
        value = getattr(problem, field.name)
        if isinstance(value, RefitProblem):
            moved[field.name] = on_gpu(value)
        elif isinstance(value, torch.Tensor):
            moved[field.name] = value.cuda()
    return replace(problem, **moved)


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("solver", ["magnitude", "taylor", "lasso", "greedy", "obs_group"])
def test_a_solver_that_draws_nothing_chooses_as_on_the_cpu(solver, refit):
    problem = layer_problem()
    there = choose_mask(on_gpu(problem), 3, solver, refit=refit)
    assert there.is_cuda
    assert torch.equal(there.cpu(), choose_mask(problem, 3, solver, refit=refit))


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_every_solver_keeps_what_it_is_asked_for(solver):
    problem = on_gpu(layer_problem())
    for refit in (False, True):
        assert (choose_mask(problem, 3, solver, refit=refit).sum(1) == 3).all()


def test_refits_agree_with_those_of_the_cpu():
    problem = random_problem(groups=6, height=4, batch=5, seed=2)
    mask = torch.arange(6).remainder(2).bool().expand(5, -1)
    weights, loss = on_gpu(problem).solve(mask.cuda())
    expected, least = problem.solve(mask)
    torch.testing.assert_close(weights.cpu(), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(loss.cpu(), least, rtol=1e-8, atol=1e-10)
