"""Tables of a report, the same for every renderer."""
