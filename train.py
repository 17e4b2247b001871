"""Entry point: `python train.py --help`. Imports only hydra, so help and completion are fast."""

import os
import sys
import warnings
from pathlib import Path

import hydra
from omegaconf import DictConfig

from hydra_plugins._crosspruner_typed import flags_first, one_line

# conf/hydra/launcher/ has files of the names that the plugins register
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/.*is validated against ConfigStore schema")
TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float:
    """Run one job and return what a sweeper maximises: the pruned test accuracy."""
    from crosspruner.experiment import run_or_stop

    return run_or_stop(config, TRACEBACK)


if __name__ == "__main__":
    sys.argv[1:] = flags_first(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises instead of printing its own report
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        if TRACEBACK:
            raise
        sys.exit(f"error: {one_line(error, Path(__file__).parent / 'conf' / 'config.yaml')}")
