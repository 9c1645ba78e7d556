"""``apply``: six applications of ψ."""
