#!/usr/bin/env bash
# The checks that need no engine: ruff, mypy, unit tests, README against docs/results, docs/COMMANDS.md, patch lint. Runs all of
# them and fails if any fails. --no-tests leaves the unit tests out, for a caller that runs all tests.
set -uo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$repo" || exit 1
python=$repo/.venv/bin/python
if [ ! -x "$python" ]; then
    echo "error: there is no .venv: run scripts/setup." >&2
    exit 1
fi

failed=()
check() {
    local name=$1
    shift
    printf '== %s\n' "$name"
    "$@" || failed+=("$name")
}

check "ruff" "$python" -m ruff check .
check "mypy" "$python" -m mypy
[ "${1:-}" = --no-tests ] || check "unit tests" "$python" -m pytest -q tests/unit
check "results" "$python" scripts/results_table.py --check
check "commands" "$python" scripts/commands_page.py --check
check "patches" scripts/patches.sh check

if [ ${#failed[@]} -gt 0 ]; then
    printf 'check failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "all checks passed"
