"""Reading images out of all kinds of loaders."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from crosspruner.errors import DataError
from crosspruner.pruning.calibration import as_network_takes, read_batches

MODEL = nn.Linear(2, 1)
IMAGES = torch.arange(12.0).view(6, 2)
LABELS = torch.arange(6)


@pytest.mark.parametrize(
    "loader",
    [
        [IMAGES[:4], IMAGES[4:]],
        [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])],
        [[IMAGES[:4]], [IMAGES[4:]]],
        [{"label": LABELS[:4], "image": IMAGES[:4]}, {"label": LABELS[4:], "image": IMAGES[4:]}],
        [({"pixel_values": IMAGES[:4]}, LABELS[:4]), ({"pixel_values": IMAGES[4:]}, LABELS[4:])],
        DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4),
        (batch for batch in (IMAGES[:4], IMAGES[4:])),
        [IMAGES[:0], IMAGES[:4], IMAGES[4:]],
    ],
    ids=["tensors", "tuples", "lists", "dicts", "nested", "loader", "generator", "empty batch"],
)
def test_every_form_gives_the_same_images(loader):
    batches = read_batches(loader, MODEL)
    assert [len(batch) for batch in batches] == [4, 2]
    assert torch.equal(torch.cat(batches), IMAGES)


def test_one_tensor_is_one_batch():
    assert len(read_batches(IMAGES, MODEL)) == 1


def test_images_take_the_type_of_the_weights():
    assert read_batches([IMAGES], nn.Linear(2, 1).double())[0].dtype == torch.float64


@pytest.mark.parametrize("given", [torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_stay_whole_numbers(given):
    images = torch.arange(6).view(3, 2).to(given)
    (batch,) = read_batches([images], MODEL)
    assert batch.dtype == given
    assert torch.equal(batch, images)


@pytest.mark.parametrize("given", [torch.uint8, torch.float16])
def test_all_images_go_where_the_weights_are(given):
    """The meta device stands for a GPU: images of bytes were left on the CPU."""
    images = as_network_takes(torch.zeros(3, 2, dtype=given), nn.Linear(2, 1, device="meta"))
    assert images.device.type == "meta"
    assert images.dtype == (torch.uint8 if given is torch.uint8 else torch.float32)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "no images"),
        (iter([]), "no images"),
        (7, "iterable"),
        ([{"foo": IMAGES}], "foo"),
        (["text"], "str"),
        ([(LABELS, IMAGES)], "shape"),
        ([IMAGES, IMAGES.view(3, 4)], "one shape"),
        ([IMAGES, IMAGES * torch.nan], "batch 1 holds NaN"),
    ],
    ids=["empty", "used up", "number", "keys", "text", "labels first", "shapes", "nan"],
)
def test_what_cannot_be_read_is_named(loader, message):
    with pytest.raises(DataError, match=message):
        read_batches(loader, MODEL)
