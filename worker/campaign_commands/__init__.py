"""Campaign commands: what bin/campaign does for an operator: look at a campaign, test it, try failures again."""
