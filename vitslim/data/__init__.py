"""Labeled images in batches, transformed as the model's evaluation transform requires."""

from vitslim.data.batches import Batches
from vitslim.data.dataset import DataModule, Dataset, batches
from vitslim.data.load import load_data
from vitslim.data.thumbnail import thumbnail

__all__ = ["Batches", "DataModule", "Dataset", "batches", "load_data", "thumbnail"]
