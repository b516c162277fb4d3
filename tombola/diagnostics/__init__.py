"""Diagnostics: what masks keep and where, and how the nets under them learn. Plain functions that give rows."""
