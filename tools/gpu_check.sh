#!/usr/bin/env bash
# Check and time npllm on a GPU, in under 8 minutes; everything that it finds is one JSON file.
#
#     tools/gpu_check.sh [RESULTS.json] [SCRATCH]
#
# For a bare machine with CuPy (cuda12x or cuda13x) and npllm's dependencies; without pytest, or torch and transformers,
# the tests or their side are left out. SCRATCH gets 7.6 GB of random weights in Phi-3-mini's shapes, once. A step that
# fails or takes too long does not stop the others; the exit code is 1 if there was one.
#
# $PYTHON is the interpreter, and $DEVICE the GPU (cuda). $CHECKPOINT are make_checkpoint.py's arguments, to try this
# script with a tiny model: CHECKPOINT="--preset tiny".
set -uo pipefail
results=$(realpath -m "${1:-gpu_check.json}")
scratch=$(realpath -m "${2:-${TMPDIR:-/tmp}/npllm-gpu-check}")
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3} device=${DEVICE:-cuda} model="$scratch/model" out="$scratch/out"
rm -rf "$out" && mkdir -p "$out" || exit 1

step() { # step NAME LIMIT COMMAND...: runs it for at most LIMIT seconds; keeps its output, exit code and seconds
    local name=$1 limit=$2 code=0 started=$SECONDS
    shift 2
    echo "$name ..." >&2
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.out" 2>"$out/$name.err" || code=$?
    echo "$code $((SECONDS - started))" >"$out/$name.code"
    echo "$name: exit code $code, $((SECONDS - started)) s" >&2
}

# The weights are written while the first steps run.
if [ ! -e "$model/tokenizer_config.json" ]; then # written last
    rm -rf "$model"
    # shellcheck disable=SC2086
    "$python" tools/bench/make_checkpoint.py ${CHECKPOINT:---preset phi-3-mini} "$model" >"$out/weights.log" 2>&1 &
fi
step selftest 60 "$python" -m npllm selftest --device "$device"
if "$python" -c 'import pytest' 2>/dev/null; then
    step tests 120 "$python" -m pytest -q -m cuda -p no:cacheprovider tests
fi
wait
step decode 60 "$python" -m npllm bench decode --device "$device" -m "$model" --dtype float16,int8,int4 --json
step decode_no_kernels 60 \
    "$python" -m npllm bench decode --device "$device" -m "$model" --dtype float16,int8,int4 --no-kernels --json
step chapter 120 "$python" tools/bench/bench_gpu.py --device "$device" --model "$model" --repeat 1

"$python" - "$out" "$results" <<'PYTHON'
import json
import sys
from pathlib import Path

out, results = map(Path, sys.argv[1:])
found = {}
for file in sorted(out.glob("*.code"), key=lambda file: file.stat().st_mtime):
    code, seconds = map(int, file.read_text().split())
    text = file.with_suffix(".out").read_text(errors="replace")
    try:
        output = json.loads(text)
    except ValueError:
        output = text.splitlines()
    errors = file.with_suffix(".err").read_text(errors="replace").splitlines()[-20:]
    found[file.stem] = {"exit_code": code, "seconds": seconds, "output": output, "stderr": errors}
for name in ("decode", "decode_no_kernels"):
    output = found[name]["output"]
    if not isinstance(output, dict):
        continue
    for dtype, row in output["rows"].items():
        read = row["weight_bytes_per_token"] + row["kv_cache_bytes_per_token"]
        least = 1e3 * read / output["read_bandwidth_bytes_per_second"]
        print(f"{name:18} {dtype:8} {1e3 / row['tokens_per_second']:8.2f} ms per token; to read its bytes: {least:.2f} ms")
results.write_text(json.dumps(found, indent=1) + "\n")
print(f"written: {results}")
sys.exit(any(step["exit_code"] for step in found.values()))
PYTHON
