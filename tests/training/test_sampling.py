from hypothesis import given
from hypothesis import strategies as st

from crosspruner.training.data.sampling import EpochSampler, ShareSampler

sizes = st.integers(1, 50)
worlds = st.integers(1, 5)


def epoch_of(sampler: EpochSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


@given(size=sizes, epoch=st.integers(0, 100), seed=st.integers(0, 2**32))
def test_an_epoch_holds_every_image_once_and_names_its_epoch(size, epoch, seed):
    keys = epoch_of(EpochSampler(size, seed), epoch)
    assert sorted(keys) == list(range(epoch * size, (epoch + 1) * size))


def test_order_depends_on_seed_and_epoch_only():
    order = [key % 40 for key in epoch_of(EpochSampler(40, seed=1), 2)]
    again = EpochSampler(40, seed=1)
    epoch_of(again, 0)
    assert order == [key % 40 for key in epoch_of(again, 2)]
    others = [(1, 3), (2, 1), (0, 2), (2, 2)]
    assert all(
        order != [key % 40 for key in epoch_of(EpochSampler(40, seed), epoch)]
        for seed, epoch in others
    )


@given(size=sizes, world=worlds)
def test_processes_get_equal_shares_of_one_epoch(size, world):
    samplers = [EpochSampler(size, 0, world, rank) for rank in range(world)]
    shares = [epoch_of(sampler, 3) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])} == {-(-size // world)}
    assert {key % size for share in shares for key in share} == set(range(size))


@given(size=sizes, world=worlds)
def test_shares_for_evaluation_hold_every_image_once(size, world):
    samplers = [ShareSampler(size, world, rank) for rank in range(world)]
    assert sorted(key for sampler in samplers for key in sampler) == list(range(size))
    assert all(len(sampler) == len(list(sampler)) for sampler in samplers)


def test_shares_by_hand():
    assert list(ShareSampler(5)) == [0, 1, 2, 3, 4]
    assert list(ShareSampler(5, num_replicas=2, rank=1)) == [1, 3]
