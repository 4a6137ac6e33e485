"""What a run keeps on disk: stages by their keys, and the artifact."""
