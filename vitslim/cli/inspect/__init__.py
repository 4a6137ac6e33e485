"""`vitslim inspect`."""
