import random

import numpy as np
import torch

from crosspruner.training.data.randomness import Stream, keyed_generator, keyed_rng


def test_draws_depend_on_the_key_alone():
    def draw(*key):
        return tuple(torch.rand(3, generator=keyed_generator(*key)).tolist())

    assert draw(Stream.ORDER, 1, 2) == draw(Stream.ORDER, 1, 2)
    keys = [(1, 2), (2, 1), (0, 1), (1, 0), (0, 0), (10**12, 3)]
    assert len({draw(stream, *key) for stream in Stream for key in keys}) == 6 * len(Stream)


def test_block_draws_from_the_key_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    first, second = torch.rand(2), torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(2), first)
    with keyed_rng(Stream.ORDER, 7, 8):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(2), second)
    assert torch.equal(inside, torch.rand(4, generator=keyed_generator(Stream.ORDER, 7, 8)))


def test_numpy_and_python_draw_from_the_key_too():
    """timm's transforms draw from these."""

    def draw():
        return np.random.rand(), random.random()  # noqa: NPY002

    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    expected = [draw(), draw()]
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    first = draw()
    with keyed_rng(Stream.AUGMENTATION, 1, 2):
        inside = draw()
    assert [first, draw()] == expected
    with keyed_rng(Stream.AUGMENTATION, 1, 2):
        assert draw() == inside
    with keyed_rng(Stream.AUGMENTATION, 1, 3):
        assert draw() != inside


def test_block_restores_after_an_error():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    try:
        with keyed_rng(Stream.ORDER, 1):
            raise KeyError
    except KeyError:
        assert torch.equal(torch.get_rng_state(), state)
