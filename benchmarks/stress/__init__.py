"""Long trials among faults: kills, broken servers, full memory. Each is a command of its own."""
