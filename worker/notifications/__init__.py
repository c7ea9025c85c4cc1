"""Notifications: single messages of reminders and trial, claimed, sent and settled."""
