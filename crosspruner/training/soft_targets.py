"""The part of the loss that compares logits with those of another network."""

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


def soft_target_losses(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(taught / T) || softmax(logits / T)) of each image.

    Args:
        logits: (B, classes) of the network.
        taught: (B, classes) of its teacher.
        temperature: T > 0. The factor T^2 keeps the gradient's size, whatever T is.

    Returns:
        (B,) float32, >= 0.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.
    """
    ours, theirs = (log_softmax(x.float() / temperature, dim=1) for x in (logits, taught))
    return kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1) * temperature**2
