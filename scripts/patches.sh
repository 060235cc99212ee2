#!/usr/bin/env bash
# Works on the patch series; patches/README.md says when to use what.
#   apply            make build/src/llama.cpp, the tree with the series applied
#   export [TREE]    write the commits of that tree (or of another) to patches/
#   check            the series applies, comes out byte for byte the same, and its headers follow the rules
#   rebase VERSION   bring the series to another version of the pinned source
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
python=$repo/.venv/bin/python
[ -x "$python" ] || python=$(command -v python3) || {
    echo "error: Python was not found: run scripts/setup." >&2
    exit 1
}
PYTHONPATH=$repo exec "$python" -m entmtp_local.native.series "$@"
