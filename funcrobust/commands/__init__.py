"""A file or folder is a command, its name the command's name."""
