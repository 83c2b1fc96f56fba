"""What comes with a request: bodies, forms, URLs, and who hangs up."""
