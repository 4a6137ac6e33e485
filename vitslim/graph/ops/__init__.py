"""Operators of vitslim's own; importing a module of this package registers its operators with torch."""
