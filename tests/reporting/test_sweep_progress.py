"""How far a sweep is, from what lies in its folder."""

import json
import os
import pickle
import time
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from crosspruner.reporting.sweep_folder import troubles, unfinished_sweep
from crosspruner.reporting.sweep_progress import (
    SweepProgress,
    SweepWatch,
    count_jobs,
    number_of_jobs,
    time_left,
)

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def sweep(make_run, tmp_path):
    """Two done, one failed, one at 3 of 12 epochs, one that has not begun to train."""
    for job in "01":
        make_run(tmp_path / job, steps=2)
    make_run(tmp_path / "2", status="failed", message="no such data", steps=2)
    make_run(tmp_path / "3", status="unfinished", steps=2)
    (tmp_path / "3" / ".epochs").write_text("3/12")
    make_run(tmp_path / "10", status="unfinished", steps=2)
    return tmp_path


def test_jobs_are_counted_by_hand(sweep):
    count = count_jobs(sweep, since=0)
    assert count.ended == ("0", "1", "2")
    assert count.failed == 1
    assert count.work == 3.25


def test_a_failure_of_an_earlier_try_does_not_count(sweep):
    count = count_jobs(sweep, since=time.time() + 60)
    assert (count.ended, count.failed, count.work) == (("0", "1"), 0, 2.25)


def test_a_torn_file_of_epochs_counts_as_nothing(sweep):
    for torn in ("", "3", "3/", "3/0"):
        (sweep / "3" / ".epochs").write_text(torn)
        assert count_jobs(sweep, since=0).work == 3


def test_time_left_by_hand():
    assert time_left(60, before=2, now=5, total=11) == 120
    assert time_left(60, before=2, now=2, total=11) is None


def test_lines_where_there_is_no_terminal(sweep, make_run, capsys):
    watch = SweepWatch(sweep, total=5)
    watch.started = 0.0
    watch.start()
    make_run(sweep / "4", steps=2)
    watch.stop()
    watch.stop()  # once more at exit, where it does nothing
    lines = capsys.readouterr().out.splitlines()
    # The failure of an earlier try is no job that is done already.
    assert lines[0] == "2 jobs are done already"
    summary = json.loads((sweep / "4" / "summary.json").read_text())
    done = f"accuracy {summary['accuracy']:.2%}, {summary['compute_saved']:.2%} saved"
    assert [line for line in lines if line.startswith("[3/5] job 2 failed: no such data, 1 failed")]
    assert [line for line in lines if line.startswith(f"[4/5] job 4 done: {done}")]


def test_the_watch_stays_in_its_process(tmp_path):
    progress = SweepProgress()
    progress.watch = SweepWatch(tmp_path, total=None)  # has a thread, which cannot travel
    assert pickle.loads(pickle.dumps(progress)).watch is None


@pytest.mark.parametrize(
    ("typed", "jobs"),
    [
        (["ratio=0.3,0.6", "grain=crossbar,column", "seed=range(0,3)"], 12),
        (["ratio=0.3"], 1),
        (["hparams_search=grid"], 12),
        (["hparams_search=grid", "ratio=0.5"], 4),  # what is typed last counts
        (["hydra/sweeper=search", "hydra.sweeper.trials=7"], 7),
    ],
)
def test_number_of_jobs(typed, jobs):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", typed_for_one(typed), return_hydra_config=True)
        config.hydra.overrides.task = [one for one in typed if not one.startswith("hydra")]
        assert number_of_jobs(config) == jobs
    GlobalHydra.instance().clear()


def typed_for_one(typed):
    """compose() makes one job: the first of each."""
    return [one for one in typed if "," not in one]


def test_troubles_in_one_line():
    table = pd.DataFrame(
        {
            "run": list("0123456"),
            "status": ["done", "unfinished", *["failed"] * 5],
            "message": ["", "", *(f"reason {i}" for i in range(5))],
        }
    )
    said = troubles(table)
    assert said.startswith("6 of 7 jobs failed: 1: not finished; 2: reason 0; ")
    assert said.endswith("5: reason 3; and 1 more")
    assert troubles(table[:1]) == ""


def test_the_newest_unfinished_sweep_of_this_command_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "-m", "ratio=0.3,0.6"])
    assert unfinished_sweep(str(tmp_path), "new") == "new"
    for name, typed in (("1", "0.3,0.6"), ("2", "0.3,0.6"), ("3", "0.1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "command.json").write_text(json.dumps(["-m", f"ratio={typed}"]))
    assert unfinished_sweep(str(tmp_path), "new") == "2"
    (tmp_path / "2" / "DONE").touch()
    assert unfinished_sweep(str(tmp_path), "new") == "1"
    os.truncate(tmp_path / "1" / "command.json", 3)
    assert unfinished_sweep(str(tmp_path), "new") == "new"
