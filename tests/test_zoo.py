"""Every architecture: plan, prune at once at both grains, save, load, and run on crossbars."""

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import crosspruner as cp
from crosspruner.hardware.chip_norms import measuring_norms
from crosspruner.pruning.budget import prunable_layers, units_of

_SPEC = importlib.util.spec_from_file_location(
    "zoo", Path(__file__).resolve().parents[1] / "scripts" / "zoo.py"
)
zoo = importlib.util.module_from_spec(_SPEC)
sys.modules["zoo"] = zoo
_SPEC.loader.exec_module(zoo)
ZOO = zoo.ZOO

# Relative to the largest logit, in float64. The crossbars add up in another order than torch does,
# and batch norms of random networks, measured on a few small images, magnify that a million times.
TOLERANCE = 1e-7

# The zeros of a standardised layer are zeros but for the mean of its saved float32 weights.
STANDARDISED = 1e-5

GROUPED = {"crossbar": "block_diagonal", "column": "apart"}


def quietly(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*never pruned.*")
        return function(*args, **kwargs)


def check(entry, grain: str, folder) -> None:
    model = entry.small()
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, entry.size, entry.size, generator=generator)
    with measuring_norms(model.eval()):  # as a trained network has them: signals get through
        model(images)
    # Small crossbars, so that small layers have blocks to give; no refit: this is about shapes.
    spec = cp.MappingSpec("folded" if grain == "crossbar" else "semifolded", grouped=GROUPED[grain])
    chip = {"crossbar": "128x128", "mapping": spec, "grain": grain, "exclude": entry.exclude}
    dense_plan = quietly(cp.plan_model, model, tuple(images.shape[1:]), **chip)
    unit, _, most = units_of(prunable_layers(dense_plan, grain))
    ratio = min(0.1, 0.5 * int((unit * most).sum()) / dense_plan.compute_crossbars)
    pruned = quietly(
        cp.prune, model, [images], **chip, ratio=ratio, solver="magnitude", refit=False
    )
    off = abs(pruned.saved - ratio) * dense_plan.compute_crossbars
    assert ratio > 0
    assert off <= int(unit.max()) / 2 + 1e-9
    pruned.save(folder)
    vanilla = entry.small()
    vanilla.load_state_dict(load_file(folder / "weights.safetensors"), strict=True)
    model, vanilla, images = model.double(), vanilla.double(), images[:2].double()
    plan = cp.Plan.load(folder / "mapping.json")
    with torch.no_grad():
        expected = vanilla(images)
        dense = model(images)
    found = cp.simulate(plan, vanilla, images)
    scale = expected.abs().max()
    assert float(scale) > 0
    forms = {layer.weight_form for layer in plan.layers}
    tolerance = STANDARDISED if "standardised" in forms else TOLERANCE
    assert float((found - expected).abs().max() / scale) < tolerance
    assert float((dense - expected).abs().max() / scale) > 1e-3  # it was pruned


# A few, at one grain each, in every test run; the rest is slow.
SHORT = [(e, ("crossbar", "column")[i % 2]) for i, e in enumerate(e for e in ZOO if e.fast)]
LONG = [(e, grain) for e in ZOO for grain in GROUPED if (e, grain) not in SHORT]


def label(value):
    return value if isinstance(value, str) else value.label


@pytest.mark.parametrize(("entry", "grain"), SHORT, ids=label)
def test_zoo_in_short(entry, grain, tmp_path):
    check(entry, grain, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "grain"), LONG, ids=label)
def test_zoo(entry, grain, tmp_path):
    check(entry, grain, tmp_path)


def test_the_zoo_spans_what_is_promised():
    assert len(ZOO) >= 60
    assert len({e.label for e in ZOO}) == len(ZOO)
    promised = "VGG,ResNet,RegNet,ResNeXt,DenseNet,MobileNet v2,MobileNet v3,MobileNet v4"
    promised += ",EfficientNet,ConvNeXt,NFNet,ViT,DeiT,Swin,MaxViT,MLP-Mixer,EfficientFormer"
    promised += ",FastViT,Inception,SqueezeNet"
    assert {e.family for e in ZOO} == set(promised.split(","))


def test_the_table_lists_all_of_the_zoo_and_maps_nearly_every_product():
    text = (Path(__file__).resolve().parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    rows = {cells[1]: cells for cells in table if len(cells) == 12 and "`" in cells[1]}
    assert set(rows) == {f"{e.source} `{e.name}`" for e in ZOO}
    assert all(float(cells[5].rstrip("%")) >= 99 for cells in rows.values())
    assert all(cells[11] == "ok" for cells in rows.values())


@pytest.mark.parametrize("name", ["squeezenet1_1", "vit_tiny_patch16_224"])
def test_the_table_is_what_the_plans_say(name):
    text = (Path(__file__).resolve().parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if f" `{name}` " in line]
    entry = next(e for e in ZOO if e.name == name)
    model = entry.create().eval()
    for mapping, column in (("folded", 8), ("semifolded", 9)):
        plan = cp.plan_model(model, (3, entry.table_size, entry.table_size), "256x256", mapping)
        assert line.split("|")[column].strip() == f"{plan.compute_crossbars:,}"
