"""Images of a run: sets with their labels, in batches, under the model's own evaluation transform."""

from vitslim.data.batches import Batches, batches
from vitslim.data.dataset import DataModule, Dataset
from vitslim.data.load import load_data

__all__ = ["Batches", "DataModule", "Dataset", "batches", "load_data"]
