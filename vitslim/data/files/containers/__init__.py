"""Files that hold many images each: tar shards, and the tables of Hugging Face datasets."""
