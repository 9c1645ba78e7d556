"""``psi-train``: transfer a robust classifier by the derivative of its drift."""
