"""What surrounds a job; the traps of many jobs in one process, on one machine, in one second."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals

from crosspruner.assemble import fix_randomness
from crosspruner.config import RunSettings
from crosspruner.errors import ConfigError
from crosspruner.experiment import checkpoint_of
from crosspruner.job import LOCK, own_folder, process_left_as_found, recorded, share_cores

# Of launchers that have a file of the name that their plugin registers; see train.py
pytestmark = pytest.mark.filterwarnings(r"ignore:\s*'hydra/launcher/.*ConfigStore schema")

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture
def hydra_config():
    """`hydra_config(*overrides)`: the composed configuration with hydra's own part."""

    import crosspruner.reporting.sweep_folder  # noqa: F401  (the resolvers of conf/hydra)

    def composed(*overrides):
        setup_globals()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", list(overrides), return_hydra_config=True)

    yield composed
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def test_random_state_and_switches_do_not_leak_into_the_next_job():
    def draws():
        fix_randomness(5)
        return torch.rand(3), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark

    alone = draws()
    with process_left_as_found():
        fix_randomness(1)
        torch.rand(7)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = True
        torch.use_deterministic_algorithms(True, warn_only=True)
        os.environ["PL_GLOBAL_SEED"] = "1"
    after = draws()
    assert torch.equal(after[0], alone[0])
    assert after[1:] == alone[1:] == (False, False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_environment_variables_do_not_leak_into_the_next_job(monkeypatch):
    monkeypatch.setenv("KEPT", "before")
    before = dict(os.environ)

    def job():
        with process_left_as_found():
            os.environ["KEPT"] = "during"
            os.environ["NEW"] = "1"
            del os.environ["PATH"]
            raise KeyError

    with pytest.raises(KeyError):
        job()
    assert dict(os.environ) == before


def test_two_runs_in_the_same_second_get_two_folders(hydra_config):
    for key in ("run", "sweep"):
        folders = {hydra_config().hydra[key].dir for _ in range(2)}
        assert len(folders) == 2


def test_joblib_does_not_start_a_job_on_each_core(hydra_config):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert hydra_config("hydra/launcher=joblib").hydra.launcher.n_jobs == 2


@pytest.mark.parametrize(
    ("launcher", "batch"), [("basic", None), ("joblib", None), ("submitit_local", 2)]
)
def test_a_launcher_that_starts_all_at_once_is_handed_two_jobs_at_a_time(
    hydra_config, launcher, batch
):
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    config = hydra_config(f"hydra/launcher={launcher}")
    assert config.hydra.sweeper.max_batch_size == batch


def test_slurm_starts_a_process_for_each_device(hydra_config):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    chosen = hydra_config("hydra/launcher=submitit_slurm", "trainer.devices=4").hydra.launcher
    assert (chosen.tasks_per_node, chosen.gpus_per_node, chosen.max_num_timeout) == (4, 4, 3)


def test_checkpoint_names_can_be_typed_in_an_override(hydra_config):
    callbacks = hydra_config().callbacks
    for name in ("checkpoint", "last"):
        assert callbacks[name].filename in ("best", "last")  # no "epoch=1": hydra refuses the "="
        assert "=" not in callbacks[name].filename
    typed = "logs/train/runs/2026-01-01_00-00-00-000000/checkpoints/last.ckpt"
    assert hydra_config(f"ckpt_path={typed}").ckpt_path == typed


def write_weights(path):
    torch.save({"conv.weight": torch.zeros(2)}, path)


def write_objects(path):
    torch.save({"state_dict": {}, "model": torch.nn.ReLU()}, path)


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("w.safetensors", Path.touch, "holds weights only: type model.weights=\\S+w.safetensors$"),
        ("w.pt", write_weights, "is no Lightning checkpoint"),
        ("o.ckpt", write_objects, "is no Lightning checkpoint"),
        ("empty.ckpt", Path.touch, "is no Lightning checkpoint"),
        ("text.ckpt", lambda path: path.write_text("text"), "is no Lightning checkpoint"),
    ],
)
def test_a_file_that_cannot_be_resumed_from(tmp_path, name, write, said):
    write(tmp_path / name)
    with pytest.raises(ConfigError, match=rf"ckpt_path=\S+{name} {said}"):
        checkpoint_of(RunSettings(ckpt_path=str(tmp_path / name)), tmp_path)


def test_a_checkpoint_is_resumed_from(tmp_path):
    path = str(tmp_path / "last.ckpt")
    assert checkpoint_of(RunSettings(), tmp_path) is None
    torch.save({"pytorch-lightning_version": "2.6.4", "state_dict": {}}, path)
    assert checkpoint_of(RunSettings(ckpt_path=path), tmp_path) == path


HOLD = """
import sys, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print(flush=True)
input()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / LOCK)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()  # it holds it from here on
    yield process
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_waited_for(tmp_path, caplog, holder):
    threading.Timer(0.5, holder.kill).start()
    started = time.monotonic()
    with own_folder(tmp_path):
        assert time.monotonic() - started >= 0.4
    assert "another process runs this job; waiting until it ends" in caplog.text


def test_a_killed_process_gives_its_folder_free(tmp_path, caplog, holder):
    holder.kill()
    holder.wait()
    with own_folder(tmp_path):
        pass
    assert "another process" not in caplog.text


def test_outcomes_are_on_record(tmp_path):
    def fail():
        with recorded(tmp_path):
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail()
    assert (tmp_path / "FAILED").read_text() == "boom\n"
    assert not (tmp_path / "DONE").exists()
    with recorded(tmp_path):
        assert not (tmp_path / "FAILED").exists()  # of the try before
    assert (tmp_path / "DONE").exists()


def test_jobs_side_by_side_share_the_cores(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    share_cores(1)
    assert torch.get_num_threads() == before  # what the user set has precedence
    monkeypatch.delenv("OMP_NUM_THREADS")
    share_cores(10_000)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
