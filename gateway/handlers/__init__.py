"""The handlers of a client's frames after its hello: a module a frame (the table is in ``session.py``)."""
