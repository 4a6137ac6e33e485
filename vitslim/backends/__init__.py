"""Where a compressed model runs: `measured` backends time it, `simulated` ones compute what it would take."""
