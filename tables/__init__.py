"""The stores of Connect Chat, one module each."""
