"""The web process: what operators, probes and Prometheus ask of a running worker."""
