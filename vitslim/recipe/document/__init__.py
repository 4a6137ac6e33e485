"""From the text of a recipe to its configs and back: YAML, validation, schema, descriptions, lock file."""
