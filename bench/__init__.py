"""Benchmarks of Connect Chat, beside other brokers where there are comparable ones."""
