"""Speed and memory, always beside what they are compared with: `python -m benchmarks`. Nothing here is a test."""
