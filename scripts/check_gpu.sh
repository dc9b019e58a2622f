#!/usr/bin/env bash
# Check and measure the cuda engine on this machine's GPU, from a bare checkout:
#
#     scripts/check_gpu.sh            # everything; LSTM_CLI_GPU_MINUTES bounds the benchmark
#     scripts/check_gpu.sh --quick    # the most telling part, less than 8 minutes
#     scripts/check_gpu.sh --host     # no GPU: tiny sizes on the processor, to see that it works
#
# It needs Python (PYTHON names another than python3) with NumPy, CuPy, h5py, click, rich, PyYAML
# and safetensors; PyTorch to compare with; no network, no pytest, no pydantic. It writes
# benchmarks/gpu-<name>.md as results come (OUTPUT names another page), goes on after a failure,
# and exits with 1 if anything failed.
set -u
cd "$(dirname "$0")/.." || exit 1

python=${PYTHON:-python3} mode=full
for option in "$@"; do
    case $option in
        --quick) mode=quick ;;
        --host) mode=host ;;
        *) echo "usage: scripts/check_gpu.sh [--quick|--host]" >&2; exit 2 ;;
    esac
done
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
work=$(mktemp -d) failed=0
trap 'rm -rf "$work"' EXIT
output=() host=()
[ -n "${OUTPUT:-}" ] && output=(--output "$OUTPUT")
[ $mode = host ] && host=(--host)

step() {  # what it is, then the command
    echo "== $1"
    shift
    "$@" || { echo "== failed: $*"; failed=1; }
}

machine() {
    if command -v nvidia-smi > /dev/null; then
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit \
            --format=csv,noheader
    fi
    "$python" --version
    "$python" scripts/check_gpu.py versions "${host[@]}"
}

sanitizer() {  # on few and small cases: it slows kernels down a hundredfold
    local tool kinds
    tool=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2> /dev/null \
        | head -n 1)
    [ -n "$tool" ] || { echo "compute-sanitizer is not installed: no race check"; return 0; }
    kinds=$("$python" -c "from lstm_cli.engines.cuda.kernels import KERNELS; print(*KERNELS)") || return 1
    local bad=0 check kind dtype
    for check in memcheck racecheck synccheck; do
        for kind in $kinds; do
            for dtype in float32 bfloat16; do
                timeout "$1" "$tool" --tool $check --error-exitcode 9 "$python" \
                    scripts/check_gpu.py one --dtype $dtype --kernels "$kind" --once --most 64 \
                    --only " × 8" > "$work/log" 2>&1
                local code=$?
                if [ $code = 124 ]; then
                    echo "$check, $dtype, $kind: not done in $1 s"
                elif [ $code != 0 ]; then
                    echo "$check, $dtype, $kind: failed with $code"
                    grep -v '^{.*"passed"' "$work/log" | head -n 40
                    bad=1
                else
                    echo "$check, $dtype, $kind: nothing found"
                fi
            done
        done
    done
    return $bad
}

suite() {  # the same contract in pytest, with Hypothesis, where both are installed
    if "$python" -c "import pytest, hypothesis, pydantic" 2> /dev/null; then
        timeout 3600 "$python" -m pytest -q tests/engines -p no:cacheprovider
    else
        echo "pytest, hypothesis or pydantic is not installed: the checks above stand alone"
    fi
}

parts=(--report "$work/contract.json") bench=() pipelines=() pipeline_seconds=1200 sanitizer_seconds=600
case $mode in
    quick) parts+=(--once --total 150 --jobs 8) bench=(--quick) pipelines=(--quick)
           pipeline_seconds=90 sanitizer_seconds=0 ;;
    full) parts+=(--jobs 4) ;;
    host) parts+=(--once --most 8 --dtype float32 --dtype bfloat16 "${host[@]}")
          parts+=(--only "${LSTM_CLI_GPU_ONLY:-}") bench=(--host --seconds 0.01) sanitizer_seconds=0 ;;
esac
[ $mode = quick ] && : "${LSTM_CLI_GPU_MINUTES:=3.5}" && export LSTM_CLI_GPU_MINUTES

if ! machine > "$work/machine" 2>&1; then
    cat "$work/machine"
    echo "== no GPU can be used here: nothing was checked"
    exit 1
fi
cat "$work/machine"
step "exchanges" "$python" scripts/measure_exchange.py --report "$work/exchange.json" "${host[@]}"
step "contract" "$python" scripts/check_gpu.py contract "${parts[@]}"
[ $sanitizer_seconds != 0 ] && step "compute-sanitizer" sanitizer $sanitizer_seconds
[ $mode = full ] && step "pytest" suite
step "pipelines" timeout $pipeline_seconds "$python" scripts/measure_pipelines.py "${pipelines[@]}" \
    --report "$work/pipelines.json" "${host[@]}"
step "benchmark" "$python" scripts/benchmark_gpu.py "${bench[@]}" --machine "$work/machine" \
    --contract "$work/contract.json" --exchange "$work/exchange.json" \
    --pipelines "$work/pipelines.json" "${output[@]}"
[ $failed = 0 ] && echo "== all passed" || echo "== something failed: see above"
exit $failed
