"""Faults on real processes: killed, paused, cut off."""
