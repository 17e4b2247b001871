"""Networks: plain nn.Modules by name, and weights from files."""

from crosspruner.training.models.build import build_model as build_model
from crosspruner.training.models.weights import WeightsReport as WeightsReport
from crosspruner.training.models.weights import load_weights as load_weights
