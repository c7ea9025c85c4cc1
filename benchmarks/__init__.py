"""What bin/bench runs: the real programs against local sinks, with every count verified."""
