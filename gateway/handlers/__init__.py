"""What is done with the frames of a client after its hello: a module a frame (the table is in ``session.py``)."""
