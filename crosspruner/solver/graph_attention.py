"""Graph attention over a few hundred nodes, in plain torch: each node mixes its neighbours.

Source: GAT (Velickovic et al., ICLR 2018), with a residual and a layer norm around each layer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GraphAttention(nn.Module):
    """One layer of multi-head graph attention.

    Args:
        width: numbers per node, a multiple of `heads`.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.values = nn.Linear(width, width, bias=False)
        self.source = nn.Parameter(torch.randn(heads, width // heads) * (width // heads) ** -0.5)
        self.target = nn.Parameter(torch.randn(heads, width // heads) * (width // heads) ** -0.5)
        self.norm = nn.LayerNorm(width)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        """Mix neighbours.

        Args:
            nodes: (n, width).
            adjacency: (n, n) bool, [i, j] = node i sees node j; every node sees itself.

        Returns:
            (n, width).
        """
        values = self.values(nodes).unflatten(1, (self.heads, -1))  # (n, h, d)
        towards = (values * self.target).sum(2).T.unsqueeze(2)  # (h, n, 1)
        of = (values * self.source).sum(2).T.unsqueeze(1)  # (h, 1, n)
        logits = F.leaky_relu(towards + of, 0.2).masked_fill(~adjacency, -torch.inf)
        mixed = logits.softmax(2) @ values.transpose(0, 1)  # (h, n, d)
        return self.norm(nodes + F.elu(mixed.transpose(0, 1).flatten(1)))


class GraphPolicy(nn.Module):
    """Features of nodes -> a logit of keeping each of them.

    Args:
        features: numbers per node.
        width: hidden numbers per node.
        layers: of attention.
    """

    def __init__(self, features: int, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.layers = nn.ModuleList(GraphAttention(width) for _ in range(layers))
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)  # no opinion to begin with
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor, adjacency: Tensor) -> Tensor:
        """(n, features), (n, n) bool -> (n,) logits."""
        nodes = self.embed(features)
        for layer in self.layers:
            nodes = layer(nodes, adjacency)
        return self.head(nodes).squeeze(1)
