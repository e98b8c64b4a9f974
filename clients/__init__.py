"""Clients of the protocol ``chat.v1``, in a folder for each language."""
