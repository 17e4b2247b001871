"""Networks: plain nn.Modules by name."""

from crosspruner.training.models.build import build_model as build_model
