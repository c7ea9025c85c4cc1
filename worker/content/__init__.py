"""Pure functions from a row and a clock to a message."""
