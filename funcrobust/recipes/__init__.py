"""The two commands' recipes: the imperative shell around the pure updates."""
