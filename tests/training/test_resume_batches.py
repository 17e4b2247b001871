"""A run that is resumed sees the batches and augmentations of one that was not interrupted."""

from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.optim import SGD

from crosspruner.training import Classifier, build_model
from crosspruner.training.data import FolderData, SyntheticData

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


class Killed(Exception):
    pass


class Watch(pl.Callback):
    """Keeps the training batches by epoch; raises after `last_step` steps, like a kill."""

    def __init__(self, last_step: int | None = None) -> None:
        self.seen: dict[int, list[torch.Tensor]] = {}
        self.last_step = last_step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.setdefault(trainer.current_epoch, []).append(batch[0].clone())
        if trainer.global_step == self.last_step:
            raise Killed


def run(make_trainer, data, watch, folder: Path, checkpoint=None, on_train_end=False):
    saver = ModelCheckpoint(
        folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=on_train_end
    )
    trainer = make_trainer(max_epochs=3, enable_checkpointing=True, callbacks=[watch, saver])
    torch.manual_seed(0)
    model = Classifier(
        build_model("vgg8", data.num_classes, data.image_size, width=0.0625),
        partial(SGD, lr=0.01, momentum=0.9),
        seed=0,
    )
    trainer.fit(model, data, ckpt_path=checkpoint)
    return model.net.state_dict()


def same_run(make_trainer, make_data, tmp_path, on_train_end):
    whole, cut, rest = Watch(), Watch(last_step=5), Watch()
    final = run(make_trainer, make_data(), whole, tmp_path / "a", on_train_end=on_train_end)
    steps = len(whole.seen[0])
    assert steps == 4  # so step 5 is the second of epoch 1
    with pytest.raises(Killed):
        run(make_trainer, make_data(), cut, tmp_path / "b", on_train_end=on_train_end)
    torch.rand(7)  # a new process starts with another state of the global generator
    last = tmp_path / "b" / "epoch=0.ckpt"
    resumed = run(make_trainer, make_data(), rest, tmp_path / "b", last, on_train_end)

    assert list(rest.seen) == [1, 2]
    for epoch in (1, 2):
        pairs = zip(whole.seen[epoch], rest.seen[epoch], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(whole.seen[0][0], whole.seen[1][0])
    assert all(torch.equal(final[key], resumed[key]) for key in final)


@pytest.mark.parametrize("on_train_end", [False, True])
def test_images_in_memory(make_trainer, tmp_path, on_train_end):
    def make_data():
        return SyntheticData(num_images=50, num_classes=2, image_size=8, batch_size=8, seed=5)

    same_run(make_trainer, make_data, tmp_path, on_train_end)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_from_files(make_trainer, image_tree, tmp_path, num_workers):
    root = image_tree({"train": {"a": 20, "b": 20}, "test": {"a": 2, "b": 2}}, size=(66, 70))

    def make_data():
        return FolderData(
            root, image_size=(66, 70), batch_size=8, num_workers=num_workers, val_fraction=0.1
        )

    same_run(make_trainer, make_data, tmp_path, on_train_end=False)
