"""`yolopard bench` and `yolopard selftest`: measurements and stress tests."""
