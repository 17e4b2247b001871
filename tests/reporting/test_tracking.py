"""Tracking without a network: every run here is offline and read back with wandb's own reader."""

import json
import os
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from crosspruner.errors import ConfigError
from crosspruner.reporting.tracked_results import log_results, survival_picture
from crosspruner.reporting.tracking import (
    TrackingSettings,
    run_id,
    run_name,
    sweep_of,
    tracked,
)
from crosspruner.reporting.wandb_account import has_account, resolve_mode

LABELS = {"model": "vgg8", "crossbar": "256x256", "grain": "column", "ratio": 0.5, "seed": 0}
CONFIG = {"crossbar": {"rows": 256, "cols": 256}, "solver": {"name": "lgd_rpp"}, "seed": 0}


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """A machine without an account, whatever the one that runs the tests has."""
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)


def only(records: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in records if record["type"] == kind]


class Tiny(pl.LightningModule):
    """Two numbers and a loss, to have something to fit."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        self.log("val/acc", [0.1, 0.9, 0.4][index], on_step=True)
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(3, 2))


@pytest.fixture(scope="module")
def trained(make_run, tmp_path_factory):
    """Folder of a run that was trained with the logger and logged its results."""
    patch = pytest.MonkeyPatch()
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        patch.delenv(key)
    patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    folder = make_run(tmp_path_factory.mktemp("logs") / "multiruns/stamp/3", steps=2)
    before = dict(os.environ)
    settings = TrackingSettings(tags=["a", "b"], project="tests")
    with tracked(settings, folder, CONFIG, LABELS) as logger:
        assert (folder / "wandb_id").is_file()  # from the start on
        trainer = pl.Trainer(
            max_epochs=1,
            logger=logger,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            accelerator="cpu",
        )
        trainer.fit(Tiny())
        log_results(logger, folder)
    assert dict(os.environ) == before  # field notes: WANDB_MODE leaked into the whole process
    # Of wandb's own files only the log of its service lies outside of the run folder.
    home = Path(os.environ["HOME"])
    patch.undo()
    assert {p.parent.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()} <= {
        ".cache/wandb/logs"
    }
    return folder


def test_run_carries_name_group_job_type_tags_and_nested_config(trained, read_wandb):
    (run,) = only(read_wandb(trained), "run")
    assert run["display_name"] == "vgg8-256x256-column-r0.5-s0"
    assert run["run_group"] == "stamp"
    assert run["job_type"] == "train"
    assert run["tags"] == ["a", "b"]
    assert run["project"] == "tests"
    assert run["run_id"] == (trained / "wandb_id").read_text().strip()
    config = run["config"]["update"]
    assert config["crossbar"] == {"rows": 256, "cols": 256}  # nested, not "crossbar/rows"
    assert config["labels"] == LABELS


def test_history_and_best_value_in_the_summary(trained, read_wandb):
    records = read_wandb(trained)
    items = [record["item"] for record in only(records, "history")]
    assert [item["val/acc"] for item in items if "val/acc" in item] == pytest.approx(
        [0.1, 0.9, 0.4]
    )
    updates = [update for record in only(records, "summary") if (update := record.get("update"))]
    best = [update["val/acc"]["max"] for update in updates if "val/acc" in update]
    assert best[-1] == pytest.approx(0.9)
    summary = json.loads((trained / "summary.json").read_text())
    merged = {key: value for update in updates for key, value in update.items()}
    assert {key: merged[key] for key in summary} == pytest.approx(summary)
    assert [record.get("exit_code", 0) for record in only(records, "exit")] == [0]


def test_layer_table_and_pictures_are_in_the_run_folder(trained):
    (table,) = trained.glob("wandb/offline-run-*/files/media/table/*.json")
    content = json.loads(table.read_text())
    assert content["columns"][0] == "layer"
    assert [row[0] for row in content["data"]][:2] == ["features.0", "features.3"]
    pictures = list(trained.glob("wandb/offline-run-*/files/media/images/**/*.png"))
    assert len(pictures) == 6


def test_no_artifact_of_the_weights_offline(trained, read_wandb):
    kinds = {artifact["type"] for artifact in only(read_wandb(trained), "artifact")}
    assert kinds <= {"run_table"}


def test_offline_mode_does_not_leak_into_the_process(tmp_path):
    before = dict(os.environ)
    with tracked(TrackingSettings(mode="offline"), tmp_path / "run", CONFIG, LABELS) as logger:
        assert logger.experiment.offline
        assert "WANDB_MODE" not in os.environ  # WandbLogger(offline=True) would set it
    assert dict(os.environ) == before


def test_two_multirun_jobs_get_two_wandb_runs(tmp_path, read_wandb):
    ids = []
    for job in ("0", "1"):
        folder = tmp_path / "multiruns/stamp" / job
        with tracked(TrackingSettings(), folder, CONFIG, LABELS) as logger:
            logger.log_metrics({"val/acc": 0.5}, step=0)
            ids.append(logger.experiment.id)
    runs = [only(read_wandb(tmp_path / "multiruns/stamp" / job), "run")[0] for job in ("0", "1")]
    assert [run["run_id"] for run in runs] == ids
    assert ids[0] != ids[1]
    assert {run["run_group"] for run in runs} == {"stamp"}


def test_a_failed_job_is_recorded_as_failed_and_resumes_the_same_run(tmp_path, read_wandb):
    import wandb

    first = tmp_path / "first"

    def job():
        with tracked(TrackingSettings(), first, CONFIG, LABELS):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        job()
    name = (first / "wandb_id").read_text().strip()
    assert wandb.run is None
    assert [record["exit_code"] for record in only(read_wandb(first), "exit")] == [1]
    checkpoint = first / "checkpoints/last.ckpt"
    second = tmp_path / "second"
    with tracked(TrackingSettings(), second, CONFIG, LABELS, resume_from=checkpoint) as logger:
        assert logger.experiment.id == name
    assert only(read_wandb(second), "run")[0]["run_id"] == name


def test_a_run_left_open_by_others_is_not_written_to(tmp_path, caplog):
    import wandb

    other = wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True))
    with tracked(TrackingSettings(), tmp_path / "run", CONFIG, LABELS) as logger:
        assert logger.experiment.id != other.id
    assert "was left open" in caplog.text
    os.environ.pop("WANDB_SERVICE", None)  # set by wandb.init above, not by us


def test_disabled_touches_nothing(tmp_path):
    before = dict(os.environ)
    with tracked(TrackingSettings(mode="disabled"), tmp_path / "r", CONFIG, LABELS) as logger:
        assert logger is None
        log_results(logger, tmp_path / "r")
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == []


def test_mode_without_and_with_an_account(monkeypatch, tmp_path):
    assert resolve_mode("auto") == "offline"
    assert resolve_mode("disabled") == "disabled"
    with pytest.raises(ConfigError, match="needs an account, and none is configured"):
        resolve_mode("online")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert resolve_mode("auto") == "online"
    assert resolve_mode("offline") == "offline"
    for variable, mode in (("dryrun", "offline"), ("disabled", "disabled"), ("typo", "online")):
        monkeypatch.setenv("WANDB_MODE", variable)
        assert resolve_mode("auto") == mode


def test_account_in_netrc_counts_for_its_own_server_only(monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    assert not has_account()
    (home / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (home / ".netrc").chmod(0o600)
    assert has_account()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_account()
    monkeypatch.delenv("WANDB_BASE_URL")
    (home / ".config/wandb").mkdir(parents=True)
    (home / ".config/wandb/settings").write_text("[default]\nbase_url = https://w.example.org\n")
    assert not has_account()
    monkeypatch.setenv("NETRC", str(tmp_path / "other"))
    (tmp_path / "other").write_text("machine w.example.org login user password secret\n")
    assert has_account()
    (tmp_path / "other").write_text("machine machine machine")
    assert not has_account()


def test_unknown_mode():
    with pytest.raises(ConfigError, match="use one of auto, online, offline, disabled"):
        TrackingSettings(mode="on")


def test_small_helpers(tmp_path):
    assert run_name({}) == "run"
    assert run_name({"model": "m", "seed": 0}) == "m-s0"
    assert sweep_of(tmp_path / "multiruns/2026/3") == "2026"
    assert sweep_of(tmp_path / "runs/2026") is None
    assert run_id(tmp_path) == run_id(tmp_path)
    (tmp_path / "wandb_id").write_text("")  # torn by a kill
    assert len(run_id(tmp_path)) == 8


def test_survival_picture_is_enlarged_by_whole_groups():
    picture = survival_picture(torch.tensor([[1, 0, 1], [0, 0, 1]]).numpy())
    assert picture.size == (192, 192)
    assert picture.getpixel((0, 0)) == (10, 107, 135)
    assert picture.getpixel((64, 0)) == (255, 255, 255)
