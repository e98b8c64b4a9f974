"""Kafka: clients, the names and configuration of the topics, and the generations of the log."""
