#!/usr/bin/env bash
# Runs every recipe at smoke scale, undisturbed and killed in the middle and resumed, and compares
# both with an earlier run of the same recipes, bit for bit.
#
#   scripts/same_bits.sh record  FOLDER             run all recipes into FOLDER (before a change)
#   scripts/same_bits.sh compare FOLDER [OPTION...] run them again and compare; options go to
#                                                   scripts/compare_runs.py
#
# Local data come from ORTHOTRAIN_DATA. RECIPES names some recipes only.
set -uo pipefail

# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
mode=${1:?record or compare} reference=${2:?a folder}
shift 2
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONPATH="$PROJECT_ROOT/src"
[ -x "$PYTHON" ] || PYTHON=$(command -v python)
all="digits-minivit cifar10-minivit cifar10-dbn texture-gcp clothing-gcp latent-linear
  sprites-eigengan sprites-simplegan faces-eigengan faces-simplegan"

train() { "$PYTHON" -m orthotrain train "$1" --scale smoke --workers 1 --run-dir "$2" >>"$2.log" 2>&1; }

# Starts a training and kills it with signal 9 after a while, until it ends by itself.
train_with_kills() {
  local pid kills=0 wait=${3}
  while :; do
    setsid "$PYTHON" -m orthotrain train "$1" --scale smoke --workers 1 --run-dir "$2" >>"$2.log" 2>&1 &
    pid=$!
    # Each attempt gets more time than the last one, so the run comes to an end.
    for _ in $(seq "$wait"); do kill -0 "$pid" 2>/dev/null && sleep 1; done
    if ! kill -9 -- "-$pid" 2>/dev/null; then break; fi
    wait "$pid" 2>/dev/null
    kills=$((kills + 1)) wait=$((wait + 3))
  done
  wait "$pid" 2>/dev/null
  echo "$1: killed $kills times, went on in the middle of a training" \
    "$(grep -cE 'goes on at step [1-9]' "$2.log") times"
}

failed=0
if [ "$mode" = record ]; then
  mkdir -p "$reference"
  for recipe in ${RECIPES:-$all}; do train "$recipe" "$reference/$recipe" || failed=1; done
  exit $failed
fi
work=$(mktemp -d)
trap 'if [ "$failed" = 0 ]; then rm -rf "$work"; else echo "kept for a look: $work"; fi' EXIT
mkdir "$work/fresh" "$work/resumed"
for recipe in ${RECIPES:-$all}; do
  train "$recipe" "$work/fresh/$recipe" || failed=1
  train_with_kills "$recipe" "$work/resumed/$recipe" "${FIRST_KILL:-8}"
  for kind in fresh resumed; do
    "$PYTHON" "$PROJECT_ROOT/scripts/compare_runs.py" \
      "$reference/$recipe" "$work/$kind/$recipe" "$@" || failed=1
  done
done
exit $failed
