"""What tests share: servers, small data sets, tiny models, and ways to run them. No test module imports another one."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository
