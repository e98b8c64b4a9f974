"""Private members of the libraries that are used or replaced here, a module for each library."""
