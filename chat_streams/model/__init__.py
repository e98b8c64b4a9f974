"""What flows between the services and how it is addressed: pure, no I/O, imports nothing of this project."""
