"""An example of a third-party method: `prune: {method: every-third}`."""
