"""Data sets: labelled images in three splits, in memory where they are small."""

from crosspruner.training.data.base import ImageData as ImageData
from crosspruner.training.data.folder import FolderData as FolderData
