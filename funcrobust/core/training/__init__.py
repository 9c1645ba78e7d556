"""The pure update, its schedules, and its compilation."""
