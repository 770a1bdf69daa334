#!/usr/bin/env bash
# Everything that needs a GPU, in one run; the last lines are a table.
#   OUT=DIR     where the full logs go, by default build/gpu
#   SHAPES=...  models that the bench measures, by default all it knows
#   ONLY=...    of tests, sanitizer, rates, bench, and with several GPUs collectives, reinitialize,
#               models, allreduce, tensor-parallel
#   RANKS=...   of what needs several GPUs only that with so many ranks: 2, 4 or 8
#   LIMIT=...   seconds for each of these, by default 900
#   TOTAL=...   seconds for all of them together, by default as long as it takes
#
# With several ranks the tests are two runs of some minutes, and the measurements another:
#   ONLY="collectives reinitialize" RANKS=4 TOTAL=480 scripts/gpu-check.sh
#   ONLY="models" RANKS=4 TOTAL=480 scripts/gpu-check.sh
#   ONLY="allreduce tensor-parallel" RANKS=4 TOTAL=580 scripts/gpu-check.sh
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-build/gpu}
limit=${LIMIT:-900}
total=${TOTAL:-1000000}
mkdir -p "$out"
export RANKS=${RANKS:-}
summary=()

# A check's seconds: its own limit, or what is left of all.
seconds() {
  local left=$((total - SECONDS))
  ((left < 1)) && left=1
  echo $((left < limit ? left : limit))
}

within() {
  timeout --kill-after 10 "$(seconds)" "$@"
}

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
    within compute-sanitizer --tool "$tool" --error-exitcode 9 node scripts/gpu-story.js || return
  done
}

# The tests of one file of test/gpu, a line each as they end.
distributed() {
  within node scripts/test-gpu.js "gpu/$1" --reporters ./scripts/lineReporter.js \
    --reporters summary ${RANKS:+-t ", $RANKS ranks"}
}

nvidia-smi --query-gpu=name,driver_version,memory.used,memory.total --format=csv,noheader || true
check tests within node scripts/test-gpu.js --testPathIgnorePatterns distributed
check sanitizer sanitize
check rates within node scripts/gpu-rates.js
shapes=()
for shape in ${SHAPES:-}; do shapes+=(--shape "$shape"); done
check bench within node bench/index.js "${shapes[@]}" --json "$out/bench.json"
if [[ -n "${ONLY:-}" ]] || (($(node scripts/count-gpus.js) > 1)); then
  check collectives distributed distributedCollectives
  check reinitialize distributed distributedReinitialize
  check models distributed distributedModels
  check allreduce within node bench/index.js allreduce --json "$out/allreduce.json"
  check tensor-parallel within node bench/index.js tensor-parallel "${shapes[@]}" \
    --json "$out/tensor-parallel.json"
fi

# Only what this run wrote.
log() {
  [[ "${summary[*]}" == *"$1: "* ]] && cat "$out/$1.log"
}

log tests | grep -hE '●|element [0-9]+ of|trial [0-9]+' | sort | uniq -c | sort -rn | head -60
log tests | grep -h 'relative error'
log sanitizer | grep -hE '^== |(ERROR|RACECHECK) SUMMARY|Error: ' | head -20
log rates
log bench | grep -vE '^ *[0-9]+\.[0-9] s  |^  (bandwidth|products of) '
for name in collectives reinitialize models; do
  log "$name" | grep -hE '^(passed|failed) |^       \| ' | head -300
done
for name in allreduce tensor-parallel; do
  log "$name" | grep -hE '^(all-reduce|llama).*   |Error|needed|common'
done
log tests | grep -hE '^(Tests|Test Suites):'
for name in "${summary[@]}"; do
  # What ended without a line of its own: a crash, or the time was up.
  [[ "$name" == *FAILED* ]] && { echo "-- the end of ${name%%:*}.log"; tail -n 15 "$out/${name%%:*}.log"; }
done
printf '%s\n' "${summary[@]}"
[[ "${summary[*]}" != *FAILED* ]]
