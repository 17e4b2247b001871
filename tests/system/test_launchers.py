"""The sweep that everyone runs: chips x grains x ratios, killed, failing, on every launcher."""

import json
import math
import os
import signal
import time

import pandas as pd
import pytest
from filelock import FileLock

from .conftest import stop_group

pytestmark = pytest.mark.slow

# 2 crossbars x 2 grains x 3 ratios on the digits, seconds each
SWEEP = (
    "-m",
    "crossbar=32x32,64x64",
    "grain=column,crossbar",
    "ratio=0.3,0.5,0.7",
    "model.width=0.0625",
    "data.batch_size=64",
    "schedule.dense_epochs=1",
    "schedule.prune_epochs=1",
    "schedule.finetune_epochs=1",
    "solver.moment_rows=64",
    "trainer.limit_train_batches=8",
)
JOBS = [str(number) for number in range(12)]
FAILING = "7"


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """The sweep that nothing disturbed, on the basic launcher, with wandb offline."""
    home = tmp_path_factory.mktemp("whole")
    code, _, err = train(home, *SWEEP)
    assert code == 0, err
    (sweep,) = (home / "logs" / "train" / "multiruns").iterdir()
    return sweep


def wait_for(condition, process, seconds=400):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def written(job):
    return (job / "summary.json").stat().st_mtime_ns


def results(sweep):
    table = pd.read_csv(sweep / "summary.csv")
    assert list(table["status"]) == ["done"] * 12
    return table.drop(columns=["wall_seconds", "message"])


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_killed_then_failing_then_mended_ends_like_a_sweep_that_nothing_disturbed(
    whole, start, train, tmp_path, launcher
):
    command = (*SWEEP, f"hydra/launcher={launcher}")
    process = start(tmp_path, *command, start_new_session=True)
    sweeps = tmp_path / "logs" / "train" / "multiruns"
    wait_for(lambda: list(sweeps.glob("*/command.json")), process)
    (sweep,) = sweeps.iterdir()
    # Something is in the way of one job's checkpoints.
    obstacle = sweep / FAILING / "checkpoints"
    obstacle.parent.mkdir()
    obstacle.touch()

    def in_the_middle():
        done = len(list(sweep.glob("*/DONE")))
        going = [job for job in sweep.glob("*/.epochs") if not (job.parent / "DONE").exists()]
        return done >= 3 and going

    wait_for(in_the_middle, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = {job: (sweep / job / "DONE").exists() for job in JOBS}
    assert 3 <= sum(finished.values()) < 11
    before = {
        job: (sweep / job / "summary.json").stat().st_mtime_ns for job in JOBS if finished[job]
    }

    code, out, err = train(tmp_path, *command)
    assert code == 1
    assert "1 of 12 jobs failed: 7: " in err
    assert "[12/12]" in out  # the overall progress, in plain lines
    assert list(sweeps.iterdir()) == [sweep]
    assert not (sweep / "DONE").exists()
    assert {job: written(sweep / job) for job in before} == before  # not run again
    table = pd.read_csv(sweep / "summary.csv").set_index("run")
    assert sorted(table.index) == list(range(12))
    assert (table.drop(int(FAILING))["status"] == "done").all()
    failed = table.loc[int(FAILING)]
    assert failed["status"] == "failed"
    assert "File exists" in failed["message"]
    assert "File exists" in (sweep / FAILING / "train.log").read_text()
    assert "File exists" in (sweep / FAILING / "FAILED").read_text()

    obstacle.unlink()
    code, _, err = train(tmp_path, *command)
    assert code == 0, err
    assert (sweep / "DONE").exists()
    pd.testing.assert_frame_equal(results(sweep), results(whole))
    for job in JOBS:  # to the last bit, whatever ran before in the same process
        for file in ("weights.safetensors", "masks.safetensors"):
            ours, theirs = (folder / job / "pruned" / file for folder in (sweep, whole))
            assert ours.read_bytes() == theirs.read_bytes(), (job, file)
    assert one_wandb_run_per_job(sweep)


def one_wandb_run_per_job(sweep):
    """A job that was killed and resumed has two files, of one run."""
    of_job = {
        job: {path.name.split("-")[-1] for path in (sweep / job / "wandb").glob("offline-run-*")}
        for job in JOBS
    }
    noted = {job: {(sweep / job / "wandb_id").read_text().strip()} for job in JOBS}
    return of_job == noted and len(set.union(*of_job.values())) == 12


def test_twelve_wandb_runs_in_one_group_read_back_by_wandb_itself(whole, read_wandb):
    ids = set()
    for job in JOBS:
        records = read_wandb(whole / job)
        summary = json.loads((whole / job / "summary.json").read_text())
        (run,) = [record["run"] for record in records if record["type"] == "run"]
        ids.add(run["run_id"])
        assert run["run_group"] == whole.name
        assert run["job_type"] == "train"
        config = run["config"]["update"]
        assert config["grain"] == {"name": summary["grain"]}
        assert f"{config['crossbar']['rows']}x{config['crossbar']['cols']}" == summary["crossbar"]
        assert config["ratio"] == summary["ratio"]
        history = [record["history"]["item"] for record in records if record["type"] == "history"]
        validated = [item["val/acc"] for item in history if "val/acc" in item]
        metrics = pd.read_csv(whole / job / "metrics.csv")
        assert validated == pytest.approx(list(metrics["val/acc"].dropna()))
        reached = [item["prune/ratio"] for item in history if "prune/ratio" in item][-1]
        assert reached == pytest.approx(summary["compute_saved"])
        updates = [r["summary"].get("update") for r in records if r["type"] == "summary"]
        merged = {key: value for update in filter(None, updates) for key, value in update.items()}
        assert {key: merged[key] for key in summary} == pytest.approx(summary)
        assert [r["exit"].get("exit_code", 0) for r in records if r["type"] == "exit"] == [0]
        (table,) = (whole / job).glob("wandb/offline-run-*/files/media/table/layers_*.json")
        layers = json.loads(table.read_text())
        named = [row[layers["columns"].index("layer")] for row in layers["data"]]
        assert named == list(pd.read_csv(whole / job / "crossbars.csv")["layer"])
    assert len(ids) == 12


def test_the_report_of_the_sweep(whole, report):
    page = report(whole).read_text()
    assert "12 done" in page
    for stem in ("frontier-vgg8-on-digits", "layers-vgg8-on-digits-32x32-column"):
        for suffix in ("csv", "png", "svg"):
            assert (whole / "figures" / f"{stem}.{suffix}").stat().st_size > 0
    numbers = pd.read_csv(whole / "figures" / "frontier-vgg8-on-digits.csv")
    assert len(numbers) == 12
    assert all(math.isfinite(value) for value in numbers["accuracy"])


def test_a_job_that_another_process_runs_is_waited_for(start, tmp_path):
    folder = tmp_path / "sweep" / "0"
    folder.mkdir(parents=True)
    command = (*SWEEP[:1], *SWEEP[4:], "ratio=0.3", "hydra.sweep.dir=sweep", "logger=csv")
    with FileLock(folder / ".lock"):
        process = start(tmp_path, *command, start_new_session=True)
        log = folder / "train.log"
        said = "another process runs this job; waiting until it ends"
        try:
            wait_for(lambda: log.exists() and said in log.read_text(), process)
            time.sleep(1)
            assert not (folder / "config_tree.txt").exists()  # what a run writes first
        except BaseException:
            stop_group(process)
            raise
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert (folder / "DONE").exists()
