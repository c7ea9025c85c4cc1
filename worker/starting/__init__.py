"""What bin/entrypoint does before the programs start."""
