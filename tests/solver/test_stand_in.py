"""How large a stand-in a layer's masks are searched on."""

import pytest
import torch

from crosspruner.solver import LayerProblem, RefitProblem, lgd_rpp_refit, polish, stand_in
from crosspruner.solver.reduce import _directions
from crosspruner.solver.stand_in import affordable_rank, affordable_restarts, stand_in_of


def problem(batch=4, groups=6, height=10, outputs=1):
    generator = torch.Generator().manual_seed(0)
    size = groups * height
    inputs = torch.randn(3 * size, size, generator=generator, dtype=torch.float64)
    target = torch.randn(batch, size, outputs, generator=generator, dtype=torch.float64)
    moment = inputs.T @ inputs / len(inputs)
    constant = (target * torch.linalg.solve(moment, target)).sum((1, 2)) * 1.1
    return RefitProblem(moment, target, constant, groups)


def test_a_small_layer_is_searched_as_it_is():
    small = problem()
    assert affordable_rank(small) == 10
    assert stand_in_of(small) is small


def test_the_rank_is_what_six_passes_can_afford(monkeypatch):
    layer = problem()
    monkeypatch.setattr(polish, "FLOPS", 0.0)
    for rank in (5, 7, 9):
        flops = 6 * 4 * (2 * (6 * rank) ** 3 + 36 * stand_in.LOOK * rank)
        monkeypatch.setattr(stand_in, "FLOPS", flops * 1.001)
        assert affordable_rank(layer) == rank
        monkeypatch.setattr(stand_in, "FLOPS", flops * 0.999)
        assert affordable_rank(layer) == rank - 1
    monkeypatch.setattr(stand_in, "FLOPS", 1.0)
    assert affordable_rank(layer) == 4  # the fewest, but for memory
    assert affordable_rank(problem(outputs=3)) == 6  # two for each output


def test_a_stand_in_before_a_polish_takes_a_quarter(monkeypatch):
    layer = problem()
    monkeypatch.setattr(stand_in, "LOOK", 0.0)

    def passes(rank):
        return 6 * 4 * 2 * (6 * rank) ** 3

    monkeypatch.setattr(stand_in, "FLOPS", 4.001 * passes(5))
    assert affordable_rank(layer) == 5
    one = passes(10) / 6
    for passed, runs in ((23.9, 1), (24.1, 1), (28.1, 2), (36.1, 4)):
        monkeypatch.setattr(stand_in, "FLOPS", passed * one)
        assert affordable_restarts(layer, 4, polished=True) == runs
    monkeypatch.setattr(stand_in, "FLOPS", 1.001 * passes(10))
    assert affordable_rank(layer) == 10  # nothing is left to polish
    monkeypatch.setattr(stand_in, "FLOPS", 0.999 * passes(10))
    assert affordable_rank(layer) == 6
    monkeypatch.setattr(polish, "FLOPS", 0.0)
    assert affordable_rank(layer) == 9


def test_there_are_no_more_directions_than_responses(monkeypatch):
    """Two groups answer two removals each, at first and at second hand."""
    monkeypatch.setattr(polish, "FLOPS", 0.0)
    layer = problem(groups=2, height=16)
    monkeypatch.setattr(stand_in, "FLOPS", 1e12)
    assert affordable_rank(layer) == 16
    monkeypatch.setattr(stand_in, "FLOPS", 6 * 4 * (2 * (2 * 15) ** 3 + 4 * stand_in.LOOK * 15))
    assert affordable_rank(layer) == 4


def test_many_small_problems_have_fewer_directions_than_few_large_ones(monkeypatch):
    """Of as many operations in their pivots: small blocks take longer than these."""
    many, few = problem(batch=64, groups=3), problem(batch=1, groups=12)
    assert 64 * 3**3 == 12**3
    monkeypatch.setattr(stand_in, "LOOK", 1e4)
    monkeypatch.setattr(stand_in, "FLOPS", 1.2e8)
    assert affordable_rank(many) == 4  # the fewest
    assert affordable_rank(few) == 10
    monkeypatch.setattr(stand_in, "LOOK", 0.0)
    assert affordable_rank(many) == affordable_rank(few) == 10


def test_the_rank_is_what_memory_holds(monkeypatch):
    layer = problem()
    monkeypatch.setattr(stand_in, "MOST_ENTRIES", 4 * (6 * 3) ** 2)
    assert affordable_rank(layer) == 3
    assert stand_in_of(layer).moment.shape == (4, 18, 18)
    monkeypatch.setattr(stand_in, "MOST_ENTRIES", 1)
    assert affordable_rank(layer) == 1
    mask = lgd_rpp_refit(layer, 3, exact=False)
    assert mask.sum(1).tolist() == [3] * 4
    dropped = layer.solve(torch.arange(6).expand(4, 6) < 3)[1]
    assert (layer.solve(mask)[1] <= dropped).all()


def test_runs_are_those_that_are_left_over(monkeypatch):
    layer = problem()
    one = 4 * (2 * 60**3 + 36 * stand_in.LOOK * 10)
    for passes, runs in ((1, 1), (6, 1), (8, 3), (20, 4)):
        monkeypatch.setattr(stand_in, "FLOPS", one * (passes + 0.5))
        assert affordable_restarts(layer, 4) == runs
    assert affordable_restarts(layer, 0) == 0


def test_a_layer_makes_its_stand_in_once(monkeypatch):
    layer = problem()
    gram = torch.eye(6, dtype=torch.float64).expand(4, 6, 6)
    monkeypatch.setattr(stand_in, "FLOPS", 1.0)
    whole = LayerProblem(gram, gram.sum(2), refit=layer)
    assert whole.stand_in is whole.stand_in
    assert whole.stand_in.group_size == 4
    assert LayerProblem(gram, gram.sum(2)).stand_in is None
    given = lgd_rpp_refit(layer, 3, exact=False, stand_in=whole.stand_in)
    assert torch.equal(given, lgd_rpp_refit(layer, 3, exact=False))


@pytest.mark.parametrize(("responses", "rank"), [(5, 3), (12, 5), (30, 4), (3, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_hold_what_the_best_ones_hold(responses, rank, dtype):
    """Of 12 rows and of fewer, as many, or more responses; random ones beside too few."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -3, 12)
    rows = (torch.randn(6, responses, 12, generator=generator) * spread).to(dtype)
    shape = (responses, rank) if rank < responses else (rank - responses, 12)
    sketch = torch.randn(shape, generator=generator).to(dtype)
    found = _directions(rows, sketch, rank)
    assert found.shape == (6, rank, 12)
    torch.testing.assert_close(found @ found.mT, torch.eye(rank, dtype=dtype).expand(6, -1, -1))
    held = (rows @ found.mT).square().sum((1, 2))
    best = torch.linalg.svdvals(rows)[:, :rank].square().sum(1)
    assert float((held / best).min()) > 0.99  # two rounds of iteration
