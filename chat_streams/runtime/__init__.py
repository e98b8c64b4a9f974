"""The base of every process: settings, logs, retries, statistics, metrics, spans, tokens."""
