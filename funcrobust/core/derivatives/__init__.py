"""How an iteration is differentiated: one way a file."""
