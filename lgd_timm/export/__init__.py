"""Doors to other libraries: one file a target."""
