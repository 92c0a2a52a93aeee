"""Adapters for other libraries, each imported by name."""
