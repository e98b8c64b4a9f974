"""Tests on machines that are made for them: what is installed here counts for nothing there."""
