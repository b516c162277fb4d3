"""Tombola inside other libraries' training loops. Each module needs its library and is imported by its own name."""
