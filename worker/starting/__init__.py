"""What happens before supervisord starts."""
