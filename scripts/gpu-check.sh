#!/usr/bin/env bash
# Runs everything that needs a GPU; prints a table last.
#   OUT=DIR     folder of the full logs, by default build/gpu
#   SHAPES=...  models that the bench measures, by default all known ones
#   ONLY=...    of tests, sanitizer, rates, bench, and with several GPUs collectives, reinitialize,
#               models, allreduce, tensor-parallel
#   RANKS=...   number of ranks for checks with several GPUs: 2, 4 or 8
#   LIMIT=...   seconds per check, by default 900
#   TOTAL=...   seconds for all checks, by default unlimited
#
# With several ranks the tests take two runs of some minutes, and the measurements one:
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

# A check's seconds: its own limit or the remaining total.
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

# A few tokens of the small model: prefill, decode and every part of the sampler.
sanitize() {
  local tool
  for tool in memcheck racecheck initcheck synccheck; do
    echo "== $tool"
    within compute-sanitizer --tool "$tool" --error-exitcode 9 node scripts/gpu-story.js || return
  done
}

# The tests of one file of test/gpu, one line per finished test.
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

# Only this run's logs.
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
  # A check without a result line: a crash or a timeout.
  [[ "$name" == *FAILED* ]] && { echo "-- the end of ${name%%:*}.log"; tail -n 15 "$out/${name%%:*}.log"; }
done
printf '%s\n' "${summary[@]}"
[[ "${summary[*]}" != *FAILED* ]]
