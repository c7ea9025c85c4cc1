"""Campaigns: runs, batches, recipients."""
