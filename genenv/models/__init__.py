"""Frozen networks, one architecture a file."""
