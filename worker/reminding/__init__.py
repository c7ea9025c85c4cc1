"""Digests of leads that wait for a follow-up."""
