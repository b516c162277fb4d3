"""The sparse engine: compiled programs that work on kept weights alone."""
