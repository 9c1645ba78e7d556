"""The pure update, its schedules, its compilation, and its replay as a CUDA graph."""
