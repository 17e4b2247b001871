"""Image trees on disk, and a Trainer that writes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import pytorch_lightning as pl

TreeMaker = Callable[..., Path]


@pytest.fixture
def image_tree(tmp_path: Path) -> TreeMaker:
    """Makes root/SPLIT/CLASS/N.png with `counts[split][class]` images of a grey level per class."""

    def make(counts: dict[str, dict[str, int]], size: tuple[int, int] = (8, 8)) -> Path:
        root = tmp_path / "tree"
        for split, classes in counts.items():
            for label, (name, count) in enumerate(sorted(classes.items())):
                folder = root / split / name
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = np.full((*size, 3), 40 * label + number, dtype=np.uint8)
                    PIL.Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        return root

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    """A CPU Trainer without logger, bars and sanity check; keywords go to it."""

    def make(**settings: Any) -> pl.Trainer:
        quiet: dict[str, Any] = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
        }
        return pl.Trainer(**{**quiet, **settings})

    return make
