"""Faults on real processes, which are killed, paused, or cut off."""
