"""Servers and stand-ins of the outside world for quickstart, tests and benchmarks; production never imports it."""
