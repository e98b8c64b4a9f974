"""Tests on machines that are made for them, independent of what is installed on this one."""
