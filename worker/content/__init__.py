"""Pure functions that make messages from rows: no network, no database, no clock of their own."""
