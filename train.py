"""Entry point: `python train.py --help`. Imports only hydra, so help and completion are fast."""

import os
import sys
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float:
    """Run one job and return what a sweeper maximises: the pruned test accuracy."""
    from crosspruner.experiment import run

    try:
        return run(config)
    except Exception as error:
        if WANTS_TRACEBACK or HydraConfig.get().mode is RunMode.MULTIRUN:
            raise  # a sweep goes on with its other jobs
        stop(error)


def stop(error: Exception) -> NoReturn:
    """Print one line, the tracebacks of hydra and its search path left out."""
    text = " ".join(str(error).split("Config search path")[0].split())
    sys.exit(f"error: {text or type(error).__name__}")


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises instead of printing its own report
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
    except Exception as error:
        if WANTS_TRACEBACK:
            raise
        stop(error)
