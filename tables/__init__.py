"""The state of Connect Chat, one module per store."""
