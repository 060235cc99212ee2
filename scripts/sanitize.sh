#!/usr/bin/env bash
# Builds the engine with the address and undefined-behaviour sanitizers and runs the engine's own tests on it, the random trees in a
# shorter version. Takes some minutes; needs GCC or Clang with their sanitizer libraries. Arguments go to pytest.
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$repo"
[ -x .venv/bin/python ] || {
    echo "error: the tests need the development environment: run scripts/setup." >&2
    exit 1
}

build=$repo/build/sanitized
.venv/bin/python -m entmtp_local.native.build --cpu --build-dir "$build" \
    --cmake-arg -DLLAMA_SANITIZE_ADDRESS=ON --cmake-arg -DLLAMA_SANITIZE_UNDEFINED=ON \
    --cmake-arg -DGGML_SANITIZE_ADDRESS=ON --cmake-arg -DGGML_SANITIZE_UNDEFINED=ON \
    --cmake-arg -DCMAKE_BUILD_TYPE=RelWithDebInfo --cmake-arg -DGGML_OPENMP=OFF

# Python was not built with the sanitizers, so their run-time libraries have to be there before it. It keeps memory at its end.
compiler=$(command -v g++ || command -v c++)
LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so) $("$compiler" -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
    ENTMTP_LOCAL_ENGINE="$(dirname "$(find "$build" -name 'libllama.so' -path '*bin*' | head -n 1)")" ENTMTP_LOCAL_RANDOM_TREES=6 \
    .venv/bin/python -m pytest -q -p no:cacheprovider tests/native/test_tree.py tests/native/test_tree_ops.py \
    tests/native/test_random_trees.py tests/native/test_drafting.py "$@"
