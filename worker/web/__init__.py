"""The web process: the status page, probes and metrics of a running worker."""
