"""Consent: the list of addresses that may not be written to or called, as an operator changes it."""
