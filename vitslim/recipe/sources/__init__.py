"""Places from which recipes come: the packaged ones, files, zip archives and git repositories."""

from vitslim.recipe.sources.recipe_file import RecipeFile, find_recipe

__all__ = ["RecipeFile", "find_recipe"]
