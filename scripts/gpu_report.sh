#!/usr/bin/env bash
# What a machine with an NVIDIA GPU and nothing else reachable can tell: builds engine and stock server for it, runs the engine's
# checks there, measures what passes and drafts cost on models of real shapes, and compares with stock llama.cpp. Leaves JSON, logs
# and summary.txt. A step that fails is noted, and the next one runs.
#
#   scripts/gpu_report.sh --source llama_cpp_python-0.3.36.tar.gz --wheels wheels --out report
#   scripts/gpu_report.sh --prebuilt build --part rest
#
#   --part core|rest|all   core (default): checks, and the 27B shape at temperature 0, cut to fit ten minutes on 16 cores (which no
#                          such machine has confirmed yet); rest: both temperatures, the other shapes and types, 1,000 tokens,
#                          the full sweep, the test of distributions
#   --source FILE          the pinned source archive (patches/UPSTREAM names it), where no network is
#   --wheels DIR           wheels of packages that are missing there, the bindings of llama-cpp-python among them
#   --prebuilt DIR         a build folder with engine/bin and stock/bin: nothing is compiled
#   --out DIR              results (default: build/gpu-report)
#   --models DIR           where wide models are written and looked for (default: build/models; 27B takes 16 GB)
#   --shape NAME           of the core part (default: qwen3.5-27b); `same` is the reference model itself
#   --jobs N               compilations at a time (default: one a core)
#   --cpu                  without a GPU, to try this script
set -uo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$repo" || exit 1

part=core prebuilt= source= wheels= out=$repo/build/gpu-report models=$repo/build/models shape=qwen3.5-27b backend=--cuda
jobs=$(getconf _NPROCESSORS_ONLN)
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
while [ $# -gt 0 ]; do
    case $1 in
        --cpu) backend=--cpu; shift; continue ;;
        --part | --source | --wheels | --prebuilt | --out | --models | --shape | --jobs)
            [ $# -gt 1 ] || fail "$1 needs a value; the head of $0 says which." ;;
        *) fail "there is no option $1; the head of $0 lists them." ;;
    esac
    case $1 in
        --part) part=$2 ;;
        --source) source=$2 ;;
        --wheels) wheels=$2 ;;
        --prebuilt) prebuilt=$(cd -- "$2" && pwd -P) || exit 1 ;;
        --out) out=$2 ;;
        --models) models=$2 ;;
        --shape) shape=$2 ;;
        --jobs) jobs=$2 ;;
    esac
    shift 2
done
case $part in core | rest | all) ;; *) fail "--part is core, rest or all, not $part." ;; esac
if [ "$backend" = --cuda ] && ! nvidia-smi -L >/dev/null 2>&1; then
    fail "no NVIDIA GPU was found (nvidia-smi -L); --cpu tries this script without one."
fi

python=${PYTHON:-$repo/.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3) || fail "Python 3.10 or newer was not found: name it as PYTHON=/path/to/python3."
mkdir -p "$out" "$models" || exit 1
out=$(cd -- "$out" && pwd -P) models=$(cd -- "$models" && pwd -P)
export PYTHONPATH=$repo XDG_CACHE_HOME=$out/cache PYTHONUNBUFFERED=1
if [ -n "$wheels" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$out/site" "$wheels"/*.whl \
        || fail "the wheels in $wheels cannot be installed."
    PYTHONPATH=$repo:$out/site
fi
"$python" -c 'import click, gguf, jinja2, numpy, pytest' || fail "Python packages are missing; bring their wheels with --wheels DIR."

# Steps: a name, and a command whose output goes to a log.

summary=$out/summary.txt
[ "$part" = rest ] || : >"$summary"
step() {
    local name=$1 begin=$SECONDS code=0
    shift
    printf '%-28s ' "$name" | tee -a "$summary"
    "$@" >"$out/$name.log" 2>&1 || code=$?
    printf '%s in %d s\n' "$([ $code = 0 ] && echo done || echo "FAILED ($code), see $name.log")" $((SECONDS - begin)) | tee -a "$summary"
    return $code
}

# The last line of a script's log is its JSON object.
keep_json() {
    tail -n 1 "$out/$1.log" >"$out/$1.json"
}

build() {
    local folder=$repo/build
    if [ -n "$source" ]; then
        mkdir -p "$folder/download" && cp "$source" "$folder/download/" || return 1
    fi
    "$python" -m entmtp_local.native.build "$backend" --with-stock --with-tests --jobs "$jobs"
}

# The operators that the patches add, on every device there is.
operators() {
    local found=0 operation
    for operation in GATED_DELTA_NET_TREE SSM_CONV_TREE ROW_STATS; do
        "$programs/test-backend-ops" test -o $operation || found=1
    done
    return $found
}

wide() {
    local shape=$1 type=$2 file=$models/$1-$2.gguf
    [ -f "$file" ] || "$python" scripts/widen_model.py models/reference-11m.gguf --shape "$shape" --type "$type" --out "$file"
}

compare() {
    local name=$1 model=$2
    shift 2
    local resume=()
    [ ! -f "$out/bench-$name.json" ] || resume=(--resume)
    step "bench-$name" "$python" -m entmtp_local bench "$model" --stock "$stock" --json "$out/bench-$name.json" \
        --report "$out/bench-$name.html" ${resume[@]+"${resume[@]}"} "$@"
    # the tables, without what was said meanwhile
    sed -n '/, temperature /,$p' "$out/bench-$name.log" >>"$summary"
}

{
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
    date -u '+%Y-%m-%d %H:%M UTC'
} >>"$summary"

if [ -n "$prebuilt" ]; then
    export ENTMTP_LOCAL_ENGINE=$prebuilt/engine/bin
    stock=$prebuilt/stock/bin/llama-server programs=$prebuilt/engine/bin
    [ -x "$stock" ] || fail "$prebuilt has no stock/bin/llama-server."
else
    stock=$repo/build/stock/bin/llama-server programs=$repo/build/engine/bin
    step build build || fail "the engine cannot be built: see $out/build.log."
fi

if [ "$part" != rest ]; then
    if [ -x "$programs/test-backend-ops" ]; then
        step operators operators
    fi
    step engine-tests "$python" -m pytest -q -p no:cacheprovider tests/native
    if step "widen-$shape" wide "$shape" Q4_0; then
        model=$models/$shape-Q4_0.gguf
        step staircase "$python" scripts/bench_tree_engine.py "$model" --context 256 --repeats 10 && keep_json staircase
        step drafting "$python" scripts/bench_drafting.py "$model" --repeats 10 && keep_json drafting
        # most of a visit is loading 16 GB: few arms, one temperature
        compare "$shape-core" "$model" --policies throughput --task code --task prose --temps 0 --sweep default \
            --prompts 1 -n 128 --rounds 5
        # what it says of memory and speed, beside what the steps before have found
        step "info-$shape" "$python" -m entmtp_local info "$model" --n-ctx 8192
    fi
fi

if [ "$part" != core ]; then
    model=$models/$shape-Q4_0.gguf
    step "widen-$shape" wide "$shape" Q4_0
    step staircase-long "$python" scripts/bench_tree_engine.py "$model" --context 256 8192 && keep_json staircase-long
    compare "$shape" "$model" --policies off,chain:3,entmtp,throughput,throughput@full
    compare "$shape-long" "$model" --prompts 2 -n 1000 --rounds 6 --chi-square 1000
    compare "$shape-full-sweep" "$model" --prompts 2 -n 256 --rounds 6 --sweep full
    for other in qwen3.5-27b:Q4_K qwen3.5-9b:Q4_0 qwen3.5-4b:Q4_0 qwen3.5-0.8b:Q4_0; do
        name=${other/:/-}
        step "widen-$name" wide "${other%:*}" "${other#*:}" || continue
        compare "$name" "$models/$name.gguf" --policies off,chain:3,entmtp,throughput,throughput@full
    done
fi
echo "results: $out"
