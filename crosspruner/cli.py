"""The console commands: `crosspruner-train` is `python train.py`, from any folder."""

import runpy
import sys
from pathlib import Path

EVALUATE = """Repeat the test figures of a finished run from its folder; exit 1 if they differ.

crosspruner-eval run_dir=logs/train/runs/STAMP
crosspruner-eval run_dir=logs/train/runs/STAMP data.dir=/new/place trainer.accelerator=cpu

Keys after run_dir change the configuration of the run."""


def train() -> None:
    """Run train.py, which lies beside the configs: in the wheel, or at the root of a clone."""
    here = Path(__file__).parent
    home = here / "_app" if (here / "_app").is_dir() else here.parent
    runpy.run_path(str(home / "train.py"), run_name="__main__")


def evaluate() -> None:
    """Repeat the figures of a run: exit 0 if they agree, 1 with the differences, 2 on errors."""
    arguments = dict(word.partition("=")[::2] for word in sys.argv[1:])
    folder = arguments.pop("run_dir", "")
    if {"-h", "--help"} & arguments.keys():
        sys.exit(print(EVALUATE))
    if not folder:
        _stop("run_dir is missing: type crosspruner-eval run_dir=logs/train/runs/STAMP")
    from hydra.errors import HydraException

    from crosspruner.errors import CrossprunerError
    from crosspruner.evaluation import evaluate_run

    try:
        overrides = [f"{key}={value}" for key, value in arguments.items()]
        evaluation = evaluate_run(Path(folder), overrides)
    except (CrossprunerError, HydraException) as error:
        _stop(" ".join(str(error).split()))
    print(evaluation.table())
    if evaluation.differences:
        sys.exit(f"error: run_dir={folder} does not repeat: {'; '.join(evaluation.differences)}")


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
