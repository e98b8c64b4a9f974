"""The inspector in a real browser, on a stack of its own: the pages, and what each role may do."""
