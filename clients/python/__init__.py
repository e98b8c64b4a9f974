"""The Python client of Connect Chat."""
