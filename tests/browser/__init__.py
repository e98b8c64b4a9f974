"""The inspector in a real browser, on a stack of its own: what an operator sees and may do."""
