"""Processes share an epoch, and measure as one does."""

from types import SimpleNamespace

import torch

from crosspruner.training.data import SyntheticData


def loaders_of(rank: int, processes: int = 2) -> SyntheticData:
    data = SyntheticData(num_images=103, num_classes=3, image_size=8, batch_size=7, augment=False)
    data.trainer = SimpleNamespace(world_size=processes, global_rank=rank)
    return data


def test_training_images_are_shared_out():
    shares = []
    for rank in (0, 1):
        sampler = loaders_of(rank).train_dataloader().sampler
        sampler.set_epoch(1)
        shares.append(list(sampler))
    assert len(loaders_of(0).splits.train) == 73
    assert [len(share) for share in shares] == [37, 37]  # one image comes twice
    assert set(shares[0]) | set(shares[1]) == set(range(73, 2 * 73))


def test_every_test_image_is_measured_once():
    labels = [torch.cat([y for _, y in loaders_of(rank).test_dataloader()]) for rank in (0, 1)]
    assert [len(share) for share in labels] == [11, 10]
    together = torch.cat(labels).sort().values
    assert torch.equal(together, loaders_of(0).splits.test.labels.sort().values)


def test_every_process_calibrates_on_the_same_images():
    first, second = (next(iter(loaders_of(rank).calibration_batches(5)))[0] for rank in (0, 1))
    assert torch.equal(first, second)
