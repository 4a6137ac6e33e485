"""How long the stages of a recipe take on this machine."""
