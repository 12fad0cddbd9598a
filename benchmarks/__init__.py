"""Speed (`python -m benchmarks`), accuracy (`python -m benchmarks.accuracy`), stress. Nothing here is a test."""
