"""Training: networks, labelled images, and the LightningModule that brings them together.

build_model -> network    FolderData, ... -> batches    Classifier(network) -> Trainer.fit
"""

from crosspruner.training.models import WeightsReport as WeightsReport
from crosspruner.training.models import build_model as build_model
from crosspruner.training.models import load_weights as load_weights
from crosspruner.training.module import Classifier as Classifier
