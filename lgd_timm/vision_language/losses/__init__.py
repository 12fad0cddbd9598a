"""What a student learns from a teacher of the same tokens: one loss a file, its formula and source on top."""
