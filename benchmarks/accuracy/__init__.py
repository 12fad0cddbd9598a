"""The method, its rivals, its switches and its names on one footing: `python -m benchmarks.accuracy`."""
