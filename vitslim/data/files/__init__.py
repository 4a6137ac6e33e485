"""Image files: folders and tables that list them, their decoding, and the check that all of them can be read."""
