"""The functional core: pure, and importing nothing else of this library."""
