"""FGSM, PGD and ψ: one step function, iterated."""
