"""`crosspruner-train`: the same command as `python train.py`, from any folder."""

import runpy
from pathlib import Path


def train() -> None:
    """Run train.py, which lies beside the configs: in the wheel, or at the root of a clone."""
    here = Path(__file__).parent
    home = here / "_app" if (here / "_app").is_dir() else here.parent
    runpy.run_path(str(home / "train.py"), run_name="__main__")
