#!/usr/bin/env bash
# Everything that needs a GPU, in one run; the last lines are a table.
#   OUT=DIR     where the full logs go, by default build/gpu
#   SHAPES=...  models that the bench measures, by default all it knows
#   ONLY=...    of tests, sanitizer, rates, bench, and with several GPUs distributed, allreduce,
#               tensor-parallel
#   RANKS=...   of distributed alone those tests with so many ranks, 2 or 4
#   LIMIT=...   seconds for each of these, by default 900
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-build/gpu}
limit=${LIMIT:-900}
mkdir -p "$out"
summary=()

check() {
  local name=$1 start=$SECONDS status=0
  shift
  [[ " ${ONLY:-$name} " == *" $name "* ]] || return 0
  "$@" >"$out/$name.log" 2>&1 || status=$?
  summary+=("$name: $([ "$status" = 0 ] && echo passed || echo "FAILED ($status)"), $((SECONDS - start)) s")
}

# A few tokens of the small model, prompts and single queries, with the sampler's parts.
sanitize() {
  local tool
  for tool in memcheck racecheck initcheck synccheck; do
    echo "== $tool"
    timeout "$limit" compute-sanitizer --tool "$tool" --error-exitcode 9 node scripts/gpu-story.js || return
  done
}

nvidia-smi --query-gpu=name,driver_version,memory.used,memory.total --format=csv,noheader || true
check tests timeout "$limit" node scripts/test-gpu.js --testPathIgnorePatterns distributed
check sanitizer sanitize
check rates timeout "$limit" node scripts/gpu-rates.js
shapes=()
for shape in ${SHAPES:-}; do shapes+=(--shape "$shape"); done
check bench timeout "$limit" node bench/index.js "${shapes[@]}" --json "$out/bench.json"
if [[ -n "${ONLY:-}" ]] || (($(node scripts/count-gpus.js) > 1)); then
  check distributed timeout "$limit" node scripts/test-gpu.js distributed ${RANKS:+-t "$RANKS ranks"}
  check allreduce timeout "$limit" node bench/index.js allreduce --json "$out/allreduce.json"
  check tensor-parallel timeout "$limit" node bench/index.js tensor-parallel "${shapes[@]}" \
    --json "$out/tensor-parallel.json"
fi

grep -hE '●|element [0-9]+ of|trial [0-9]+' "$out"/{tests,distributed}.log 2>/dev/null | sort | uniq -c | sort -rn | head -60
grep -h 'relative error' "$out/tests.log" 2>/dev/null
grep -hE '^== |(ERROR|RACECHECK) SUMMARY|Error: ' "$out/sanitizer.log" 2>/dev/null | head -20
cat "$out/rates.log" 2>/dev/null
grep -vE '^ *[0-9]+\.[0-9] s  |^  (bandwidth|products of) ' "$out/bench.log" 2>/dev/null
grep -hE '^(all-reduce|llama).*   |Error|needed|common' "$out"/{allreduce,tensor-parallel}.log 2>/dev/null
grep -hE '^(Tests|Test Suites):' "$out"/{tests,distributed}.log 2>/dev/null
printf '%s\n' "${summary[@]}"
[[ "${summary[*]}" != *FAILED* ]]
