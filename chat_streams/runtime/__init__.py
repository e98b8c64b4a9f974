"""The parts that every process needs: settings, logs, retries, statistics, metrics, spans, tokens."""
