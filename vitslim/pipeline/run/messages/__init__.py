"""Messages of a run: events, expected time, warnings."""
