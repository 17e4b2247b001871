"""What a newcomer sees first."""

import subprocess
import sys

from .conftest import ROOT


def test_help_shows_six_commands_and_the_groups(train, tmp_path):
    code, out, _ = train(tmp_path, "--help")
    assert code == 0
    assert sum(line.lstrip().startswith("python train.py") for line in out.splitlines()) == 6
    for group in ("model: ", "crossbar: ", "grain: column, crossbar", "solver: "):
        assert group in out


def test_flags_may_stand_between_overrides(train, tmp_path):
    code, out, err = train(tmp_path, "seed=3", "--cfg", "job", "ratio=0.7", "-p", "solver")
    assert code == 0, err
    assert "name: lgd_rpp" in out


def test_importing_train_does_not_import_torch():
    probe = "import sys; import train; print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"


def test_a_reader_that_has_enough_is_no_error(start, tmp_path):
    process = start(tmp_path, "--help")
    process.stdout.close()  # as `| head -0` does
    process.stdout = None
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
