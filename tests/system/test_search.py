"""A search over the ratios of single layers, from the command line."""

import os
import signal
import time

import pandas as pd
import pytest

from .conftest import SMALL, stop_group

pytestmark = pytest.mark.slow

SEARCH = (
    "hparams_search=layer_ratios",
    *SMALL,
    "logger=csv",
    "hydra.sweeper.trials=4",
    "hydra.sweeper.startup=3",
    "hydra.sweeper.start_ratios=[0.5]",
)


def test_a_search_that_is_killed_goes_on_to_its_front(start, train, tmp_path):
    pytest.importorskip("optuna")
    process = start(tmp_path, *SEARCH, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("logs/train/multiruns/*/1/.epochs")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    stop_group(process)
    code, out, err = train(tmp_path, *SEARCH)
    assert code == 0, err
    assert "[4/4] job 3 done" in out
    (sweep,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    table = pd.read_csv(sweep / "summary.csv")
    assert list(table["status"]) == ["done"] * 4
    assert set(table["budget"]) == {"per_layer"}
    # The first one is the uniform ratio; each was met as asked for.
    assert abs(table["compute_saved"][0] - 0.5) < 0.02
    assert table["compute_saved"].tolist() == pytest.approx(table["ratio"].tolist())
    front = pd.read_csv(sweep / "front.csv")
    found = table.loc[front["run"]]
    assert front["val_accuracy"].tolist() == pytest.approx(found["val_accuracy"].tolist())
    best = table.loc[table["val_accuracy"].idxmax()]
    assert best["val_accuracy"] == pytest.approx(front["val_accuracy"].max())
    assert front["compute_crossbars"].min() == table["compute_crossbars"].min()
