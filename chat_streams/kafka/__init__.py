"""Kafka: clients, the names and the shape of the topics, and the generations of the log."""
