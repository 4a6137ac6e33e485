"""What a run says while it works: events, expected time, warnings."""
