"""The watchdog: what it does for the programs that supervisord runs, and an extension of supervisord itself."""
