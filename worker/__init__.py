"""The background-worker server of the Bharat CRM."""

__version__ = "0.1.0"
