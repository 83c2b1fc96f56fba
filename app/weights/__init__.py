"""What weights files are, told without loading them."""
