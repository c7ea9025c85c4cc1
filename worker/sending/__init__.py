"""What several jobs send with: accounts, pacing, requests."""
