"""Packed recipes, and the differences between two recipes."""

from vitslim.recipe.sharing.differences import KeyDifference, differences
from vitslim.recipe.sharing.pack import Packed, pack_recipe

__all__ = ["KeyDifference", "Packed", "differences", "pack_recipe"]
