"""The edge: WebSocket connections of protocol ``chat.v1``, and a client for it."""
