"""Entry point: `python train.py --help`. Imports only hydra, so help and completion are fast."""

import os
import sys

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    """Run one job and return what a sweeper maximises: the pruned test accuracy."""
    from crosspruner.experiment import run

    return run(config)


if __name__ == "__main__":
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises instead of printing its own report
    try:
        main()
    except Exception as error:
        if wants_traceback:
            raise
        message = " ".join(str(error).split("Config search path")[0].split())
        sys.exit(f"error: {message or type(error).__name__}")
