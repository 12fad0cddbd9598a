"""Files, schema, HTTP, ranks, devices, signals, logs and checkpoints: nothing here knows of distillation."""
