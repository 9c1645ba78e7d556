"""Losses that keep the loss close to linear around the data."""
