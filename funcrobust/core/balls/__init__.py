"""Threat models: where a perturbation may go, and which way is steepest."""
