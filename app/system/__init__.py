"""Threads, processes, host, GPU, metrics and logging."""
