"""Data sets: labelled images in three splits, in memory where they are small."""

from crosspruner.training.data.base import ImageData as ImageData
from crosspruner.training.data.base import Splits as Splits
from crosspruner.training.data.cifar import CifarData as CifarData
from crosspruner.training.data.digits import DigitsData as DigitsData
from crosspruner.training.data.folder import FolderData as FolderData
from crosspruner.training.data.imagenet import ImageNetData as ImageNetData
from crosspruner.training.data.synthetic import SyntheticData as SyntheticData
