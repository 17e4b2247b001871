"""Run folders as an experiment leaves them, made in milliseconds and consistent in every number."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import save_file

# name, kind, input FMs, output FMs, kernel, input groups, output groups, slices, phases
VGG8 = [
    ("features.0", "conv", 3, 64, 3, 1, 16, 4, 32),
    ("features.3", "conv", 64, 64, 3, 8, 16, 4, 32),
    ("features.7", "conv", 64, 128, 3, 8, 32, 2, 16),
    ("features.10", "conv", 128, 128, 3, 16, 32, 2, 16),
    ("features.14", "conv", 128, 256, 3, 16, 64, 1, 8),
    ("features.17", "conv", 256, 256, 3, 32, 64, 1, 8),
    ("classifier.1", "linear", 4096, 512, 1, 16, 128, 1, 1),
    ("classifier.4", "linear", 512, 10, 1, 2, 3, 1, 1),
]


def resnet_like(blocks: int) -> list[tuple]:
    """A deep network: a stem, `blocks` equal convolutions with long names, a classifier."""
    inner = [
        (
            f"layer{1 + i // 12}.{i // 3}.bottleneck.conv{1 + i % 3}",
            "conv",
            256,
            256,
            3,
            32,
            64,
            1,
            8,
        )
        for i in range(blocks)
    ]
    return [VGG8[0], *inner, VGG8[-1]]


def write_run(
    path: Path,
    *,
    layers: list[tuple] = VGG8,
    model: str = "vgg8",
    crossbar: str = "256x256",
    grain: str = "crossbar",
    ratio: float = 0.5,
    seed: int = 0,
    solver: str = "lgd_rpp",
    status: str = "done",
    message: str = "DataError: data.dir=/nope is not a folder.",
    steps: int = 40,
    epochs: tuple[int, int, int] = (2, 3, 2),
    config: dict[str, Any] | None = None,
) -> Path:
    """Write one run folder; a failed run stops after its first phase, without a summary."""
    rng = np.random.default_rng([seed, round(1000 * ratio), grain == "column"])
    (path / ".hydra").mkdir(parents=True)
    settings: dict[str, Any] = {
        "model": {"name": model, "width": 0.5},
        "data": {"name": "digits", "batch_size": 64},
        "crossbar": {"name": crossbar, "rows": int(crossbar.split("x")[0])},
        "mapping": {"name": "semifolded"},
        "grain": {"name": grain},
        "solver": {"name": solver, "relax": 0.5},
        "procedure": {"name": "per_step"},
        "budget": {"name": "uniform"},
        "optimizer": {"lr": 0.001},
        "trainer": {"max_epochs": sum(epochs)},
        "ratio": ratio,
        "seed": seed,
        "tags": ["test"],
    } | (config or {})
    choices = {k: v["name"] for k, v in settings.items() if isinstance(v, dict) and "name" in v}
    overrides = [f"model={model}", f"crossbar={crossbar}", f"grain={grain}", f"ratio={ratio}"]
    overrides += [f"seed={seed}"]
    (path / ".hydra/config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (path / ".hydra/overrides.yaml").write_text(yaml.safe_dump(overrides))
    hydra = {"hydra": {"runtime": {"choices": choices}, "job": {"num": 0}}}
    (path / ".hydra/hydra.yaml").write_text(yaml.safe_dump(hydra))
    (path / "train.log").write_text("started\n")

    done = status == "done"
    write_metrics(path / "metrics.csv", rng, ratio, steps, epochs if done else (epochs[0], 0, 0))
    if not done:
        if status == "failed":
            (path / "FAILED").write_text(f"{message}\nTraceback (most recent call last):\n  ...\n")
        return path
    table, masks = prune_fake(layers, rng, ratio, grain)
    table.to_csv(path / "crossbars.csv", index=False)
    (path / "pruned").mkdir()
    save_file(masks, path / "pruned/masks.safetensors")
    compute_dense, compute = int(table["compute_dense"].sum()), int(table["compute"].sum())
    total_dense = compute_dense + int(table["reduction_dense"].sum() + table["buffer"].sum())
    total = compute + int(table["reduction"].sum() + table["buffer"].sum())
    dense_accuracy = 0.98 + 0.004 * rng.random()
    accuracy = dense_accuracy - 0.08 * ratio**3 - (0.004 if grain == "crossbar" else 0.0)
    accuracy += 0.002 * rng.standard_normal()
    summary = {
        "model": model,
        "data": "digits",
        "crossbar": crossbar,
        "mapping": "semifolded",
        "grain": grain,
        "ratio": ratio,
        "seed": seed,
        "dense_accuracy": dense_accuracy,
        "accuracy": accuracy,
        "accuracy_drop": dense_accuracy - accuracy,
        "val_accuracy": accuracy + 0.001,
        "compute_crossbars_dense": compute_dense,
        "compute_crossbars": compute,
        "compute_saved": 1 - compute / compute_dense,
        "total_crossbars_dense": total_dense,
        "total_crossbars": total,
        "total_saved": 1 - total / total_dense,
        "weight_sparsity": 1 - float(table["weights_kept"].mean()),
        "phases": int(table["phases"].sum()),
        "wall_seconds": 252.4,
    }
    (path / "summary.json").write_text(json.dumps(summary, indent=2))
    (path / "DONE").write_text("")
    return path


def prune_fake(
    layers: list[tuple], rng: np.random.Generator, ratio: float, grain: str
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Layer table and masks of a pruning at random, exact in every count."""
    rows, masks = [], {}
    for index, (name, kind, cin, cout, kernel, p, q, slices, phases) in enumerate(layers):
        dense = p * q * slices
        prunable = 0 < index < len(layers) - 1
        kept_blocks = dense // slices
        if prunable:
            units = q if grain == "crossbar" else cout
            keep = max(1, round(p * (1 - ratio)))
            scores = rng.random((units, p)) + np.linspace(0.6, 0, p)
            masks[name] = (np.argsort(np.argsort(-scores, axis=1), axis=1) < keep).astype(np.uint8)
            per_block = 1 if grain == "crossbar" else -(-cout // q)
            kept_blocks = int(np.ceil(masks[name].sum(axis=0) / per_block).sum())
        rows.append(
            {
                "layer": name,
                "kind": kind,
                "in_fms": cin,
                "out_fms": cout,
                "kernel": f"{kernel}x{kernel}",
                "kin": -(-cin // p),
                "kout": -(-cout // q),
                "input_groups": p,
                "output_groups": q,
                "slices": slices,
                "prunable": prunable,
                "compute_dense": dense,
                "compute": kept_blocks * slices,
                "saved": 1 - kept_blocks * slices / dense,
                "reduction_dense": q * slices if p > 1 else 0,
                "reduction": q * slices // 2 if p > 1 else 0,
                "buffer": 2 if kernel > 1 else 0,
                "phases": phases,
                "weights_kept": float(masks[name].mean()) if prunable else 1.0,
            }
        )
    return pd.DataFrame(rows), masks


def write_metrics(
    path: Path, rng: np.random.Generator, ratio: float, steps: int, epochs: tuple[int, int, int]
) -> None:
    """`metrics.csv` as Lightning's CSVLogger writes it: training rows, then a row per epoch."""
    rows: list[dict[str, float]] = []
    total = steps * sum(epochs)
    bounds = np.cumsum(epochs) * steps
    for step in range(total):
        phase = int(np.searchsorted(bounds, step, side="right"))
        progress = np.clip((step - bounds[0]) / max(1, bounds[1] - bounds[0]), 0, 1)
        now = ratio * (1 - (1 - progress) ** 3)
        loss = 2.3 * np.exp(-3 * step / total) + 0.3 * now * (phase == 1) + 0.1
        epoch = step // steps
        if step % 5 == 4:
            rows.append(
                {
                    "epoch": epoch,
                    "step": step,
                    "train/loss": loss + 0.1 * rng.standard_normal(),
                    "train/acc": 1 - loss / 2.6 + 0.03 * rng.standard_normal(),
                    "prune/phase": phase,
                    "prune/ratio": now,
                    "prune/relax": 0.5 * (1 - progress) if phase == 1 else 0.0,
                    "prune/mask_churn": 0.1 * (1 - progress) * rng.random() if phase == 1 else 0.0,
                    "crossbars/compute": round(4000 * (1 - now)),
                    "crossbars/saved": round(4000 * now),
                }
            )
        if step % steps == steps - 1:
            accuracy = min(0.99, 1 - loss / 2.5)
            rows.append({"epoch": epoch, "step": step, "val/loss": loss, "val/acc": accuracy})
    pd.DataFrame(rows).to_csv(path, index=False)


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """`make_run(path, **settings)` writes a run folder and returns its path."""
    return write_run


@pytest.fixture(scope="session")
def deep_network() -> list[tuple]:
    """Layers of a network as deep as ResNet50."""
    return resnet_like(52)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """One finished run of VGG8."""
    return write_run(tmp_path / "run")
