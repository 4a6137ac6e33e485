"""Files of a run: finished stages by their keys, and the artifact."""
