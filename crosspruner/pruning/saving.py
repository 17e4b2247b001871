"""What a pruned network is saved as: files that load without crosspruner."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from crosspruner.errors import ConfigError
from crosspruner.hardware import Plan


def save_pruned(
    folder: str | Path, network: nn.Module, plan: Plan, masks: Mapping[str, Tensor]
) -> None:
    """Write weights.safetensors (plain keys, exact zeros), masks.safetensors and mapping.json.

    Args:
        folder: made if it does not exist.
        network: the pruned network; loads back with strict keys into the vanilla one.
        plan: its packed plan.
        masks: layer name -> (U, P) bool, stored as uint8.

    Raises:
        ConfigError: there is a file where the folder would be.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(
            f"{folder} cannot be made, for there is a file: give another folder to save into"
        ) from error
    # Shared weights are written under each of their keys, as a state dict has them.
    weights = {k: v.detach().cpu().clone().contiguous() for k, v in network.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    save_file(
        {k: v.cpu().byte().contiguous() for k, v in masks.items()}, folder / "masks.safetensors"
    )
    plan.save(folder / "mapping.json")
