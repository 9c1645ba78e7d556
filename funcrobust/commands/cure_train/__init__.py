"""``cure-train``: fast adversarial training with curvature regularisation."""
