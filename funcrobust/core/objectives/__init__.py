"""The loss algebra, and its lift to what an update differentiates."""
