"""The stream processors of Connect Chat, and what flows between them."""
