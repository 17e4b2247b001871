"""crosspruner-eval: a run folder repeats its figures, or says where it does not."""

import json
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from .conftest import ROOT, SMALL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evaluate(clean_environment):
    """Run `python scripts/evaluate.py ...`; returns (exit code, stdout, stderr)."""

    def evaluate(*arguments):
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "evaluate.py"), *map(str, arguments)],
            env={**clean_environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return evaluate


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    home = tmp_path_factory.mktemp("finished")
    code, _, err = train(home, *SMALL, "logger=csv")
    assert code == 0, err
    (run,) = (home / "logs" / "train" / "runs").iterdir()
    return run


def test_the_figures_are_repeated_and_nothing_is_written(finished, evaluate):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    code, out, err = evaluate(f"run_dir={finished}")
    assert code == 0, err
    summary = json.loads((finished / "summary.json").read_text())
    for key in ("dense_accuracy", "accuracy"):
        assert out.count(f"{summary[key]:.4%}") >= 2, out
    assert f"{summary['compute_crossbars']:,}" in out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_pretrained_network_needs_no_hub_again(finished, evaluate):
    """No hub has this network: building it as pretrained would fail."""
    code, _, err = evaluate(f"run_dir={finished}", "model.pretrained=true")
    assert code == 0, err


def test_other_figures_are_told_with_a_non_zero_exit(finished, evaluate, tmp_path):
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", finished, copy], check=True)
    summary = json.loads((copy / "summary.json").read_text())
    noted = summary | {"accuracy": 0.125, "compute_crossbars": 1}
    (copy / "summary.json").write_text(json.dumps(noted))
    (copy / "checkpoints" / "dense.safetensors").unlink()
    code, out, err = evaluate(f"run_dir={copy}")
    assert code == 1
    assert f"accuracy: 0.125 noted, {summary['accuracy']} found" in err
    assert f"compute_crossbars: 1 noted, {summary['compute_crossbars']} found" in err
    assert "dense_accuracy" not in err  # there is nothing to repeat it with
    assert "not known" in out


def test_weights_of_another_run_are_refused(finished, evaluate, tmp_path):
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", finished, copy], check=True)
    weights = load_file(copy / "pruned" / "weights.safetensors")
    name = next(iter(load_file(copy / "pruned" / "masks.safetensors")))
    weights[f"{name}.weight"] += 1
    save_file(weights, copy / "pruned" / "weights.safetensors")
    code, _, err = evaluate(f"run_dir={copy}")
    assert code == 2
    assert f"weights of {name} are not zero where its mask prunes them" in err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([], "run_dir is missing"),
        (["run_dir=/nope"], "run_dir=/nope lacks"),
        (["run_dir={run}", "data.folder=/x"], "data.folder is no value of the run's configuration"),
        (["run_dir={run}", "trainer=gpu"], "trainer is no value of the run's configuration"),
        (["run_dir={run}", "ratio=2"], "ratio=2 is out of range"),
    ],
)
def test_wrong_input_gets_one_line(finished, evaluate, typed, said):
    code, _, err = evaluate(*(word.format(run=finished) for word in typed))
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
