"""The search for the runs that none beats, with jobs that take no time."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict
from safetensors.torch import save_file

from crosspruner.errors import ConfigError
from hydra_plugins.crosspruner_search import ParetoSearch

pytest.importorskip("optuna")

from crosspruner.search import FRONT, search  # (needs optuna)

CONF = Path(__file__).parents[1] / "conf"


class Killed(BaseException):
    """What a SIGKILL looks like from within: nothing is cleaned up."""


class FakeLauncher:
    """Writes what a job leaves: two objectives that pull against each other."""

    def __init__(self, sweep, fails=(), killed_at=None):
        self.sweep, self.fails, self.killed_at = sweep, set(fails), killed_at
        self.launched = {}

    def launch(self, jobs, first):
        results = []
        for number, overrides in enumerate(jobs, start=first):
            if number == self.killed_at:
                raise Killed
            self.launched[number] = overrides
            folder = self.sweep / str(number)
            folder.mkdir(exist_ok=True)
            values = dict(override.lstrip("+").split("=", 1) for override in overrides)
            x, y = float(values["optimizer.lr"]), float(values["data.batch_size"])
            summary = {"accuracy": math.sin(9 * x) + y / 64, "crossbars": x + y, "model": "vgg8"}
            if number in self.fails:
                (folder / "FAILED").write_text("boom")
            else:
                (folder / "summary.json").write_text(json.dumps(summary))
                (folder / "DONE").touch()
            hydra = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(folder)}}})
            results.append(SimpleNamespace(hydra_cfg=hydra))
        return results


@pytest.fixture(scope="module")
def loader():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.fixture
def run(loader, tmp_path):
    """Search in a folder below tmp_path; returns (front, launcher)."""

    def run(name="sweep", *arguments, fails=(), killed_at=None, **given):
        sweep = tmp_path / name
        config = OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep)}}})
        settings = ParetoSearch(
            **{
                "trials": 12,
                "at_once": 1,
                "seed": 3,
                "startup": 4,
                "objectives": {"accuracy": "maximize", "crossbars": "minimize"},
                "layers": None,
                "start_ratios": [],
                "start_runs": [],
                "params": {"optimizer.lr": "interval(0.0,1.0)", "data.batch_size": "8,16,32"},
                **given,
            }
        )
        launcher = FakeLauncher(sweep, fails, killed_at)
        return search(settings, config, loader, launcher, list(arguments)), launcher

    return run


def beaten(values, others):
    return any(o[0] >= values[0] and o[1] <= values[1] and o != values for o in others)


def test_the_front_is_what_no_trial_beats(run, tmp_path):
    front, launcher = run()
    assert sorted(launcher.launched) == list(range(12))
    summaries = [
        json.loads((tmp_path / "sweep" / str(n) / "summary.json").read_text()) for n in range(12)
    ]
    points = [[s["accuracy"], s["crossbars"]] for s in summaries]
    unbeaten = [n for n in range(12) if not beaten(points[n], points)]
    assert sorted(number for number, _ in front) == unbeaten
    table = pd.read_csv(tmp_path / "sweep" / FRONT)
    assert sorted(table["run"]) == unbeaten
    assert list(table.columns) == [
        "run", "accuracy", "crossbars", "optimizer.lr", "data.batch_size",
    ]  # fmt: skip


def test_fixed_overrides_reach_every_job_and_typed_ranges_are_searched(run):
    _, launcher = run(
        "sweep",
        "grain=column",
        "optimizer.lr=tag(log,interval(0.001,0.1))",
        params={"data.batch_size": "range(1,4)"},
        trials=6,
    )
    for overrides in launcher.launched.values():
        values = dict(override.split("=", 1) for override in overrides)
        assert values["grain"] == "column"
        assert 0.001 <= float(values["optimizer.lr"]) <= 0.1
        assert values["data.batch_size"] in ("1", "2", "3")


@pytest.mark.parametrize(("at_once", "killed_at"), [(1, 7), (3, 7), (1, 0)])
def test_a_search_that_was_killed_ends_with_the_same_trials(run, at_once, killed_at):
    whole, straight = run("whole", at_once=at_once)
    with pytest.raises(Killed):
        run("broken", at_once=at_once, killed_at=killed_at)
    front, rest = run("broken", at_once=at_once)
    # What was killed is run again, by its own number and with its own choices.
    assert min(rest.launched) == killed_at - killed_at % at_once
    assert all(straight.launched[number] == job for number, job in rest.launched.items())
    assert max(rest.launched) == 11
    assert front == whole
    _, nothing = run("broken", at_once=at_once)
    assert nothing.launched == {}


def test_a_failed_trial_leaves_the_others_alone_and_is_run_when_typed_again(run):
    _, first = run(fails=[2])
    assert sorted(first.launched) == list(range(12))
    _, again = run()
    assert again.launched == {2: first.launched[2]}


def test_more_trials_later(run):
    run(trials=5)
    _, more = run(trials=8)
    assert sorted(more.launched) == [5, 6, 7]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"params": None}, "there is nothing to search over"),
        ({"objectives": {"accuracy": "up"}}, "objectives.accuracy=up: use maximize or minimize"),
        (
            {"objectives": {"model": "maximize"}},
            "model is no number.*choose of accuracy, crossbars",
        ),
    ],
)
def test_wrong_settings_are_said(run, given, said):
    with pytest.raises(ConfigError, match=said):
        run(**given)


def test_a_ratio_for_each_prunable_layer(loader):
    from crosspruner.search_space import Space, add_layers

    config = compose("config", ["experiment=demo", "model.width=0.0625", "budget=per_layer"])
    space = Space()
    add_layers(space, config, [0.0, 0.9], [0.5])
    layers = [
        "features.3",
        "features.7",
        "features.10",
        "features.14",
        "features.17",
        "classifier.0",
    ]
    assert list(space.distributions) == [f"+budget.layer_ratios.{name}" for name in layers]
    of_first = space.distributions["+budget.layer_ratios.features.3"]
    assert (of_first.low, of_first.high) == (0, 3)  # of 4 blocks, one stays
    (start,) = space.start
    assert all(space.distributions[key]._contains(value) for key, value in start.items())
    typed = space.overrides({"+budget.layer_ratios.features.3": 3})
    assert typed == ["+budget.layer_ratios.features.3=0.75"]
    for limits in ([0.5, 0.5], [0.0, 1.0], [-0.1, 0.5]):
        with open_dict(config), pytest.raises(ConfigError, match="is no range of ratios"):
            add_layers(Space(), config, limits, [])


def test_it_begins_with_what_finished_runs_removed(loader, tmp_path):
    from crosspruner.search_space import Space, add_layers, add_runs

    config = compose("config", ["experiment=demo", "model.width=0.0625", "budget=per_layer"])
    space = Space()
    layouts = add_layers(space, config, [0.0, 0.6], [])
    for number in (10, 9):
        masks = {name: torch.ones(layout.shape) for name, layout in layouts.items()}
        if number == 9:
            masks["features.3"][:, :1] = 0
            masks["classifier.0"][:] = 0
        (tmp_path / f"{number}" / "pruned").mkdir(parents=True)
        save_file(masks, tmp_path / f"{number}" / "pruned" / "masks.safetensors")
    add_runs(space, layouts, [str(tmp_path), str(tmp_path / "10")])
    ninth, tenth, again = space.start
    assert set(tenth.values()) == {0}
    assert again == tenth
    first, last = "+budget.layer_ratios.features.3", "+budget.layer_ratios.classifier.0"
    assert ninth[first] == layouts["features.3"].blocks // layouts["features.3"].input_groups
    assert ninth[last] == space.distributions[last].high  # 0.6 of it, not all
    assert set(ninth.values()) == {0, ninth[first], ninth[last]}
    with pytest.raises(ConfigError, match="neither the folder"):
        add_runs(space, layouts, [str(tmp_path / "none")])
    save_file({"features.3": torch.ones(1, 1)}, tmp_path / "10" / "pruned" / "masks.safetensors")
    with pytest.raises(ConfigError, match="other groups"):
        add_runs(space, layouts, [str(tmp_path / "10")])
