"""Images of a run: sets with their labels, in batches, under the model's own evaluation transform."""

from vitslim.data.batches import Batches
from vitslim.data.dataset import DataModule, Dataset, batches
from vitslim.data.load import load_data

__all__ = ["Batches", "DataModule", "Dataset", "batches", "load_data"]
