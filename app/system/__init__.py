"""Threads, processes, the machine, metrics and the log."""
