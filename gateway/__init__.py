"""The edge: WebSocket connections of protocol ``chat.v1`` on one side, Kafka on the other.

``app`` takes connections, ``session`` serves one with ``handlers`` (a module a frame), ``hub`` brings each delivery to
its own, ``publisher`` writes to Kafka. The decisions, without I/O, are in ``state``.
"""
