"""How Connect Chat is installed and run."""
