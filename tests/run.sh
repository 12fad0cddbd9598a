#!/usr/bin/env bash
# Installs everything into .venv, then lints, type-checks and tests. `.ci/run` calls it; arguments go to pytest,
# which runs in two processes (`--numprocesses 0`: in one).
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check --editable '.[test]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest --numprocesses 2 --dist worksteal "$@"
