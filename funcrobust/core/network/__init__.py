"""A module becomes pure functions of its tensors."""
