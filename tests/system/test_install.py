"""An installed wheel runs from any folder, configs and all."""

import os
import subprocess
import sys
import zipfile

import pytest

from .conftest import ROOT, SMALL

pytestmark = pytest.mark.slow


def test_the_wheel_trains_from_an_empty_folder(tmp_path, clean_environment):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "-o",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site, home = tmp_path / "site", tmp_path / "home"
    zipfile.ZipFile(wheel).extractall(site)
    home.mkdir()
    script = (
        "import crosspruner, crosspruner.cli as cli;"
        f"assert crosspruner.__file__.startswith({str(site)!r}), crosspruner.__file__;"
        "cli.train()"
    )
    environment = {**clean_environment, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", script, *SMALL, "logger=csv"],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (run,) = (home / "logs" / "train" / "runs").iterdir()
    assert {"DONE", "report.html", "summary.json"} <= set(os.listdir(run))
    again = subprocess.run(
        [sys.executable, "-c", script.replace("cli.train", "cli.evaluate"), f"run_dir={run}"],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    (entries,) = (path.read_text() for path in site.glob("*.dist-info/entry_points.txt"))
    assert "crosspruner-eval = crosspruner.cli:evaluate" in entries
