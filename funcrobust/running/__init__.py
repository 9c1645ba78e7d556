"""What every command that runs needs."""
