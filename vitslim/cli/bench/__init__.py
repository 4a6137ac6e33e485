"""`vitslim bench`."""
