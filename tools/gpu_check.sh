#!/usr/bin/env bash
# Check and time npllm on a GPU in under 8 minutes, and write what it finds into one JSON file.
#
#     tools/gpu_check.sh [RESULTS.json] [SCRATCH]
#
# For a bare machine with CuPy (cuda12x or cuda13x), npllm's dependencies, pytest and hypothesis, torch and transformers.
# SCRATCH gets 7.6 GB of random weights in Phi-3-mini's shapes, once. A step that fails or takes too long does not stop
# the others; the exit code is then 1.
#
# $PYTHON is the interpreter, and $DEVICE the GPU (cuda). $CHECKPOINT holds the arguments of make_checkpoint.py, and
# $PATIENCE multiplies the limits: with CHECKPOINT="--preset tiny" and PATIENCE=6, the script runs on the emulated device, too.
set -uo pipefail
results=$(realpath -m "${1:-gpu_check.json}")
scratch=$(realpath -m "${2:-${TMPDIR:-/tmp}/npllm-gpu-check}")
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3} device=${DEVICE:-cuda} checkpoint=${CHECKPOINT:---preset phi-3-mini} out="$scratch/out"
model="$scratch/model${checkpoint// /_}" # other weights have another folder
rm -rf "$out" && mkdir -p "$out" || exit 1

step() { # step NAME LIMIT COMMAND...: runs it for at most LIMIT seconds; keeps its output, exit code and seconds
    local name=$1 limit=$2 code=0 started=$SECONDS
    shift 2
    timeout --kill-after=5 $((limit * ${PATIENCE:-1})) "$@" >"$out/$name.out" 2>"$out/$name.err" || code=$?
    echo "$code $((SECONDS - started))" >"$out/$name.code"
    echo "$name: exit code $code, $((SECONDS - started)) s" >&2
}

if [ ! -e "$model/tokenizer_config.json" ]; then # written last
    rm -rf "$model"
    # shellcheck disable=SC2086
    step weights 120 "$python" tools/bench/make_checkpoint.py $checkpoint "$model" &
fi
# Not the options of setup.cfg: they need more packages.
step tests 120 "$python" -m pytest -o addopts= --import-mode=importlib -p no:cacheprovider -q -m cuda tests/test_cuda*.py
wait
step selftest 80 "$python" -m npllm selftest --device "$device" -m "$model"
for kernels in kernels no-kernels; do
    step "decode_$kernels" 90 "$python" -m npllm bench decode --device "$device" -m "$model" \
        --dtype float16,int8,int4 --json $([ $kernels = kernels ] || echo --no-kernels)
done
step chapter 90 "$python" tools/bench/bench_gpu.py --device "$device" --model "$model" --repeat 1

"$python" - "$out" "$results" <<'PYTHON'
import json
import sys
from pathlib import Path

out, results = map(Path, sys.argv[1:])
steps, milliseconds = {}, {}
for file in sorted(out.glob("*.code"), key=lambda file: file.stat().st_mtime):
    code, seconds = map(int, file.read_text().split())
    text, errors = (file.with_suffix(end).read_text(errors="replace") for end in (".out", ".err"))
    steps[file.stem] = {"exit_code": code, "seconds": seconds, "output": text, "stderr": errors[-4000:]}
    if file.stem.startswith("decode") and code == 0:
        steps[file.stem]["output"] = output = json.loads(text)
        for dtype, row in output["rows"].items():
            read = row["weight_bytes_per_token"] + row["kv_cache_bytes_per_token"]
            taken, least = row["seconds_per_token"]["median"], read / output["read_bandwidth_bytes_per_second"]
            milliseconds[f"{dtype}, {file.stem}"] = {"taken": 1e3 * taken, "to_read_its_bytes": 1e3 * least}
            print(f"{dtype:8} {file.stem:18} {1e3 * taken:8.2f} ms per token; reading its bytes takes {1e3 * least:.2f}")
results.write_text(json.dumps({"milliseconds_per_token": milliseconds, "steps": steps}, indent=1) + "\n")
print(f"written: {results}")
sys.exit(any(step["exit_code"] for step in steps.values()))
PYTHON
