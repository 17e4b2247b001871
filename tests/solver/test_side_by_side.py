import threading

import pytest
import torch

from crosspruner.errors import SolverError
from crosspruner.solver.lgd_refit import lgd_rpp_refit
from crosspruner.solver.pivot import batch_parts
from crosspruner.solver.reduce import reduce_problem
from crosspruner.solver.refit import RefitProblem
from crosspruner.solver.side_by_side import part_size, side_by_side

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_parts_run_at_the_same_time_on_one_thread_each():
    met = threading.Barrier(2)

    def work(part):
        met.wait(timeout=60)  # a part alone would wait for ever
        return part, torch.get_num_threads()

    assert side_by_side(work, range(4), CPU) == [(part, 1) for part in range(4)]
    assert torch.get_num_threads() == 2


def test_fewer_parts_than_threads_keep_them_all():
    def work(_):
        return threading.get_ident(), torch.get_num_threads()

    assert side_by_side(work, range(1), CPU) == [(threading.get_ident(), 2)]


def test_an_error_of_a_part_is_raised_and_leaves_the_threads_as_they_were():
    def work(part):
        if part == 1:
            raise SolverError("part 1")
        return part

    with pytest.raises(SolverError, match="part 1"):
        side_by_side(work, range(50), CPU)
    assert torch.get_num_threads() == 2
    # Threads begun later have them all again.
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [2]


@pytest.mark.parametrize("inference", [False, True])
def test_modes_of_the_caller_hold_in_the_parts(inference):
    with torch.inference_mode(inference), torch.no_grad():
        made = side_by_side(
            lambda _: torch.ones(1).requires_grad_(not inference) + 1, range(4), CPU
        )
    assert [part.is_inference() for part in made] == [inference] * 4
    assert not any(part.requires_grad for part in made)


def many_problems():
    normal = torch.Generator().manual_seed(0)
    inputs = torch.randn(600, 240, generator=normal, dtype=torch.float64)
    weight = torch.randn(240, 64, generator=normal, dtype=torch.float64)
    rows = torch.full((20,), 12)
    outputs = torch.arange(64).unsqueeze(1)
    return RefitProblem.from_moments(inputs.T @ inputs / 600, weight, rows, outputs)


def test_masks_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr("crosspruner.solver.pivot.TABLE_ENTRIES", 2**17)
    monkeypatch.setattr("crosspruner.solver.reduce._CHUNK_ENTRIES", 2**18)
    problem, found = many_problems(), []
    parts = batch_parts(problem, rank=5)  # 12 tables of 10,100 entries would fit into one
    assert [part.stop - part.start for part in parts] == [8] * 8
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        stand_in = reduce_problem(problem, 5)
        found.append((stand_in.moment, lgd_rpp_refit(problem, 10, stand_in=stand_in, restarts=2)))
    for moment, mask in found[1:]:
        torch.testing.assert_close(moment, found[0][0], rtol=1e-3, atol=1e-4)
        assert torch.equal(mask, found[0][1])


@pytest.mark.parametrize(
    ("number", "most", "size"),
    [(10, 10, 10), (10, 9, 3), (64, 11, 8), (512, 117, 64), (3, 1, 1), (1, 5, 1), (0, 5, 1)],
)
def test_parts_are_alike_and_a_multiple_of_four(number, most, size):
    assert part_size(number, most) == size
