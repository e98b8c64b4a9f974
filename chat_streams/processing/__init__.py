"""Applying records in order, committing only what is done, and what the Faust apps are built from."""
