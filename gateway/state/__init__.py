"""The decisions of the gateway without I/O: time is passed in."""
