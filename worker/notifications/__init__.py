"""Single messages: claimed, sent, settled."""
