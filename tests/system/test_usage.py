"""docs/usage.md runs as it stands, and its styles end with the same masks as the command line."""

import re
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

import crosspruner as cp
from crosspruner.assemble import fix_randomness, network_of, open_data
from crosspruner.config import run_settings
from crosspruner.evaluation import load_config
from crosspruner.sparsity import GroupLayout

from .conftest import ROOT, SMALL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*exists and is not empty"),
]

STYLES = {"loop": 2, "resume": 3, "lightning": 4, "one call": 5, "hold": 6}
"""Which block of the page shows it; block 0 is what all of them begin with."""


def blocks():
    text = (ROOT / "docs" / "usage.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def run(*chosen):
    """The names that the preamble and the chosen blocks leave."""
    names = {"__name__": "usage"}
    for source in (blocks()[0], *(blocks()[number] for number in chosen)):
        exec(compile(source, "docs/usage.md", "exec"), names)
    return names


def test_the_page_has_these_blocks():
    found = blocks()
    assert len(found) == 7
    for style, words in (
        ("loop", "pruning.step()"),
        ("resume", "load_state_dict"),
        ("lightning", "LightningModule"),
        ("one call", "cp.prune("),
        ("hold", "cp.hold("),
    ):
        assert words in found[STYLES[style]]


def test_the_plan(capsys):
    run(1)
    assert "total crossbars" in capsys.readouterr().out


def test_loop_and_lightning_end_with_the_same_masks_and_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loop, lightning = run(STYLES["loop"]), run(STYLES["lightning"])
    ours, theirs = loop["pruning"], lightning["pruning"]
    assert ours.frozen
    assert theirs.frozen
    for name, mask in theirs.masks.items():
        assert torch.equal(ours.masks[name], mask)
        assert not mask.all()
    for key, value in lightning["network"].state_dict().items():
        assert torch.equal(loop["network"].state_dict()[key], value), key
    saved = load_file(tmp_path / "pruned" / "weights.safetensors")
    assert torch.equal(saved["3.weight"], loop["network"][3].weight)
    dense = ours.dense_plan.compute_crossbars
    unit = min(layout.crossbars_per_block for layout in ours.layouts.values())
    assert abs(ours.compute_crossbars - 0.6 * dense) <= unit / 2


def test_a_loop_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(STYLES["resume"])
    assert names["pruning"].steps == len(names["loader"])


def test_one_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(STYLES["one call"])
    with torch.no_grad():
        expected = names["result"].model.eval()(names["images"][:8])
    assert torch.allclose(names["logits"], expected, atol=1e-4)


def test_fine_tuning_holds_the_zeros(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(STYLES["hold"])["result"]
    tuned = load_file(tmp_path / "tuned" / "weights.safetensors")
    for name, mask in result.masks.items():
        weight = tuned[f"{name}.weight"]
        layout = GroupLayout.of(result.plan.layer(name), "column")
        assert not weight[~layout.expand_like(mask, weight).expand_as(weight)].any()


class Foreign(pl.LightningModule):
    """Nothing of ours but the network and the batches."""

    def __init__(self, network, optimizer, schedule):
        super().__init__()
        self.body, self.optimizer, self.schedule = network, optimizer, schedule

    def training_step(self, batch, batch_idx):
        return loss(self.body, *batch)

    def configure_optimizers(self):
        scheduler = self.schedule(self.optimizer)
        return [self.optimizer], [{"scheduler": scheduler, "interval": "step"}]


def loss(network, images, labels):
    images = images.contiguous(memory_format=torch.channels_last)
    return cross_entropy(network(images), labels, reduction="none").mean()


@pytest.fixture
def one_thread(monkeypatch):
    """Sums shared among threads may differ in their last digits from one process to another."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("grain", ["column", "crossbar"])
def test_command_line_lightning_and_loop_end_alike(train, tmp_path, grain):
    code, _, err = train(tmp_path, *SMALL, "logger=csv", f"grain={grain}")
    assert code == 0, err
    (folder,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    masks = load_file(folder / "pruned" / "masks.safetensors")
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    config = load_config(folder)
    settings = run_settings(config)
    how = {
        "crossbar": settings.crossbar,
        "grain": grain,
        "ratio": settings.ratio,
        "schedule": settings.schedule,
        "settings": settings.solver,
        "input_shape": (3, 16, 16),
        "seed": settings.seed,
    }

    def start():
        """The same network, batches, optimizer and learning rates as the run's."""
        fix_randomness(settings.seed)
        data = open_data(config)
        network = network_of(config, data).to(memory_format=torch.channels_last)
        several = [p for p in network.parameters() if p.ndim > 1]
        single = [p for p in network.parameters() if p.ndim <= 1]
        given = config.optimizer
        optimizer = torch.optim.SGD(
            [{"params": several}, {"params": single, "weight_decay": 0.0}],
            **{key: given[key] for key in ("lr", "momentum", "nesterov", "weight_decay")},
        )
        steps = 3 * len(data.train_dataloader())
        rates = {k: v for k, v in config.lr_schedule.items() if not k.startswith("_")}
        return data, network, optimizer, partial(OneCycleLR, total_steps=steps, **rates), steps

    data, network, optimizer, schedule, steps = start()
    callback = cp.CrossbarPruning(**how, root="body")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", callbacks=[callback], **quiet)
    trainer.fit(Foreign(network, optimizer, schedule), data.train_dataloader())
    foreign = network.state_dict()

    data, network, optimizer, schedule, steps = start()
    attached = cp.attach(network, optimizer, **how, total_steps=steps)
    scheduler, loader = schedule(optimizer), data.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            loss(network, images, labels).backward()
            optimizer.step()
            scheduler.step()
            attached.step()

    assert masks.keys() == callback.masks.keys() == attached.masks.keys()
    for name, mask in masks.items():
        assert torch.equal(callback.masks[name], mask.bool()), name
        assert torch.equal(attached.masks[name], mask.bool()), name
        assert not bool(mask.bool().all())
    for key, value in network.state_dict().items():
        assert torch.equal(foreign[key], value), key
        assert torch.equal(last[f"net.{key}"], value), key
