#!/usr/bin/env bash
# Installs everything into .venv, then lints, type-checks and tests. `.ci/run` calls it; arguments go to pytest,
# which runs in two processes (`--numprocesses 0`: in one).
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check --editable '.[test]'
# The browser that the tests of the report's page open it in: where it can be installed it must be there, elsewhere they skip
if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/zensical build --strict
exec .venv/bin/python -m pytest --numprocesses 2 --dist worksteal "$@"
