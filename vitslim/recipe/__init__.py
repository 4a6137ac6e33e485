"""Recipes: their typed configs, loading, validation, descriptions and lock files. Imports no torch."""

from vitslim.recipe.catalog import RecipeInfo, packaged_recipes, resolve_checkpoint
from vitslim.recipe.document.describe import KeyInfo, MethodInfo, describe_methods, find_methods
from vitslim.recipe.document.grammar import recipe_schema
from vitslim.recipe.document.starter import new_recipe_text
from vitslim.recipe.load import load_recipe, validate
from vitslim.recipe.lock import Locked, assumptions, lock_text, read_locked, recipe_text
from vitslim.recipe.rules import check_order
from vitslim.recipe.schema import Recipe

__all__ = [
    "KeyInfo",
    "Locked",
    "MethodInfo",
    "Recipe",
    "RecipeInfo",
    "assumptions",
    "check_order",
    "describe_methods",
    "find_methods",
    "load_recipe",
    "lock_text",
    "new_recipe_text",
    "packaged_recipes",
    "read_locked",
    "recipe_schema",
    "recipe_text",
    "resolve_checkpoint",
    "validate",
]
