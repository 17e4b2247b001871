import itertools

import torch

from crosspruner.solver.greedy import greedy_elimination
from crosspruner.solver.swap import gram_loss, swap_descent


def correlated_gram(batch: int, groups: int, seed: int, samples: int | None = None):
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(batch, samples or groups, groups, generator=generator, dtype=torch.float64)
    return data.mT @ data


def test_gram_loss_by_hand():
    gram = torch.tensor([[[2.0, 1.0], [1.0, 3.0]]])
    linear = torch.tensor([[3.0, 4.0]])
    masks = torch.tensor([[[False, False], [True, False], [False, True], [True, True]]])
    # 0; 2 - 6; 3 - 8; 2 + 3 + 2 - 14
    assert gram_loss(gram, linear, masks).tolist() == [[0.0, -4.0, -5.0, -7.0]]


def test_one_swap_by_hand():
    # Z_0 = Z_1 = -Z_2 and Z_3 apart; pruning {0, 2} costs nothing, pruning {0, 1} costs 4.
    outputs = torch.tensor([[1.0, 1.0, -1.0, 0.0], [0.0, 0.0, 0.0, 3.0]], dtype=torch.float64)
    gram = (outputs.T @ outputs)[None]
    linear = gram.sum(-1)
    start = torch.tensor([[False, False, True, True]])
    swapped = swap_descent(gram, linear, start)
    assert gram_loss(gram, linear, swapped).item() == -gram.sum().item()
    assert swapped.tolist() in ([[False, True, False, True]], [[True, False, False, True]])


def test_result_is_a_local_optimum_of_all_exchanges():
    gram = correlated_gram(6, 9, seed=0)
    linear = gram.sum(-1) + torch.randn(6, 9, generator=torch.Generator().manual_seed(1)).double()
    start = torch.zeros(6, 9, dtype=torch.bool)
    for row, number in enumerate([0, 1, 4, 5, 8, 9]):
        start[row, :number] = True
    mask = swap_descent(gram, linear, start)
    assert torch.equal(mask.sum(1), start.sum(1))
    loss = gram_loss(gram, linear, mask)
    assert (loss <= gram_loss(gram, linear, start)).all()
    for row in range(6):
        kept, pruned = mask[row].nonzero().flatten(), (~mask[row]).nonzero().flatten()
        for a, b in itertools.product(kept.tolist(), pruned.tolist()):
            other = mask[row : row + 1].clone()
            other[0, a], other[0, b] = False, True
            assert gram_loss(gram[row : row + 1], linear[row : row + 1], other) >= loss[row] - 1e-9


def test_batch_and_single_problems_agree():
    gram = correlated_gram(12, 15, seed=2)
    linear = gram.sum(-1)
    start = torch.zeros(12, 15, dtype=torch.bool)
    start[:, :7] = True
    together = swap_descent(gram, linear, start)
    alone = [swap_descent(gram[i : i + 1], linear[i : i + 1], start[i : i + 1]) for i in range(12)]
    assert torch.equal(together, torch.cat(alone))


def test_max_swaps_limits_each_row():
    gram = correlated_gram(5, 20, seed=3)
    linear = gram.sum(-1)
    start = torch.zeros(5, 20, dtype=torch.bool)
    start[:, :10] = True
    one = swap_descent(gram, linear, start, max_swaps=1)
    assert ((one != start).sum(1) == 2).all()
    assert torch.equal(swap_descent(gram, linear, start, max_swaps=0), start)


def test_tied_and_zero_problems_end():
    gram = torch.zeros(1, 6, 6, dtype=torch.float64)
    start = torch.tensor([[True, True, False, False, True, False]])
    assert torch.equal(swap_descent(gram, gram.sum(-1), start), start)
    gram = torch.ones(1, 6, 6, dtype=torch.float64)
    assert torch.equal(swap_descent(gram, gram.sum(-1), start), start)


def test_greedy_by_hand():
    # Independent groups of energy 4, 1, 3, 2: the weakest go first.
    gram = torch.diag(torch.tensor([4.0, 1.0, 3.0, 2.0], dtype=torch.float64))[None].repeat(2, 1, 1)
    mask = greedy_elimination(gram, gram.sum(-1), torch.tensor([1, 3]))
    assert mask.tolist() == [[True, False, False, False], [True, False, True, True]]


def test_greedy_sees_cancellation():
    # Groups 0 and 1 cancel each other: after one is pruned the other must follow.
    outputs = torch.tensor([[2.0, -2.0, 3.0, 3.0]], dtype=torch.float64)
    outputs = torch.cat([outputs, 0.1 * torch.eye(4, dtype=torch.float64)])
    gram = (outputs.T @ outputs)[None]
    mask = greedy_elimination(gram, gram.sum(-1), 2)
    assert mask.tolist() == [[False, False, True, True]]


def test_gains_below_the_last_digit_of_a_large_linear_part_are_none():
    # All masks lose the same: what a swap seems to gain is what rounding h left of 0.7.
    gram = 0.7 * torch.eye(24, dtype=torch.float64)[None]
    linear = torch.full((1, 24), 1e6 / 3, dtype=torch.float64)
    start = torch.arange(24)[None] < 12
    assert torch.equal(swap_descent(gram, linear, start, max_swaps=1), start)


def test_no_problems_have_no_masks():
    nothing = torch.zeros(0, 4, 4, dtype=torch.float64)
    mask = swap_descent(nothing, nothing[:, 0], torch.zeros(0, 4, dtype=torch.bool))
    assert mask.shape == (0, 4)
