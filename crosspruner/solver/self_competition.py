"""Policy search over binary choices of the nodes of a graph, rewarded for beating oneself.

Each episode draws keep or drop for every node. Its reward is +1 if its value is above what the
agent reached lately (a moving average of its own values), else -1. The policy is updated by PPO's
clipped objective after every few episodes; the best choice ever met is what comes out.

Source: Balemans et al. 2025 (arXiv 2509.10526) reward an agent for beating its own past under a
resource constraint; the moving average as its past, PPO (Schulman et al. 2017) and all sizes are
our reading of an abstract. Nothing is trained between the episodes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from crosspruner.errors import SolverError
from crosspruner.solver.graph_attention import GraphPolicy


@dataclass(frozen=True)
class SearchSettings:
    """How long and how boldly the agent searches.

    Args:
        episodes: choices that are tried, >= 1.
        together: episodes between two updates, >= 1.
        passes: gradient steps of an update, >= 1.
        clip: PPO's largest change of a choice's probability, > 0.
        memory: share of its past that the agent's reference keeps, in [0, 1).
        entropy: weight of the bonus for staying undecided, >= 0.
        lr: learning rate of the policy, > 0.
    """

    episodes: int = 96
    together: int = 8
    passes: int = 4
    clip: float = 0.2
    memory: float = 0.9
    entropy: float = 0.003
    lr: float = 0.01


@dataclass(frozen=True)
class Found:
    """What a search ended with."""

    action: Tensor
    """(n,) bool, the best choice met."""
    value: float
    """Its value."""
    values: list[float]
    """Of all episodes, in turn; the first is that of dropping nothing."""
    keep: Tensor
    """(n,) the policy's probabilities of keeping, at the end."""


def rewards_against_oneself(
    values: list[float], reference: float, memory: float
) -> tuple[list[float], float]:
    """+1 for each value above the reference at its time, -1 for the others.

    Returns:
        The rewards, and the reference after them.
    """
    rewards = []
    for value in values:
        rewards.append(1.0 if value > reference else -1.0)
        reference = memory * reference + (1 - memory) * value
    return rewards, reference


def search(
    features: Tensor,
    adjacency: Tensor,
    evaluate: Callable[[Tensor], float],
    generator: torch.Generator,
    settings: SearchSettings | None = None,
) -> Found:
    """Search for the choice of highest value.

    Args:
        features: (n, f) of the nodes, finite.
        adjacency: (n, n) bool.
        evaluate: (n,) bool choice -> its value, higher = better, finite. Whatever constraint there
            is, it meets it itself.
        generator: CPU generator of the policy's start and of all choices.
        settings: None = the defaults.

    Raises:
        SolverError: a value is not finite.
    """
    how = settings or SearchSettings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        policy = GraphPolicy(features.shape[1])
    optimizer = torch.optim.Adam(policy.parameters(), lr=how.lr)
    best = torch.ones(len(features), dtype=torch.bool)
    values = _finite([evaluate(best)])
    most = reference = values[0]
    while len(values) < how.episodes:
        with torch.no_grad():
            logits = policy(features, adjacency)
        draws = torch.rand(how.together, len(features), generator=generator)
        actions = draws < torch.sigmoid(logits)
        news = _finite([evaluate(action) for action in actions])
        for action, value in zip(actions, news, strict=True):
            if value > most:
                best, most = action, value
        values += news
        rewards, reference = rewards_against_oneself(news, reference, how.memory)
        _update(policy, optimizer, features, adjacency, actions, torch.tensor(rewards), how)
    with torch.no_grad():
        keep = torch.sigmoid(policy(features, adjacency))
    return Found(best, most, values, keep)


def _finite(values: list[float]) -> list[float]:
    if not all(map(math.isfinite, values)):
        raise SolverError("a choice has a value that is NaN or Inf")
    return values


@torch.enable_grad()
def _update(
    policy: GraphPolicy,
    optimizer: torch.optim.Optimizer,
    features: Tensor,
    adjacency: Tensor,
    actions: Tensor,
    rewards: Tensor,
    how: SearchSettings,
) -> None:
    choices = actions.float()
    gain = (rewards - rewards.mean()).unsqueeze(1)
    if not bool(gain.any()):
        gain = rewards.unsqueeze(1)  # all alike: all of them are to be repeated, or avoided
    old: Tensor | None = None
    for _ in range(how.passes):
        logits = policy(features, adjacency)
        spread = logits.expand_as(choices)
        chances = -F.binary_cross_entropy_with_logits(spread, choices, reduction="none")
        if old is None:
            old = chances.detach()
        change = (chances - old).exp()
        clipped = change.clamp(1 - how.clip, 1 + how.clip)
        objective = torch.minimum(change * gain, clipped * gain).mean()
        keep = torch.sigmoid(logits)
        undecided = F.binary_cross_entropy_with_logits(logits, keep)
        optimizer.zero_grad()
        (-(objective + how.entropy * undecided)).backward()
        optimizer.step()
