#!/usr/bin/env bash
# Everything that must hold before a change lands, and what CI runs: format, lint, types, import
# rules, doctests, tests. Stops at the first failure. With CI=true the output of every stage is
# shown, otherwise that of a failed one, and the slow tests run, too.
set -euo pipefail

# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/scripts/env.sh"

setup_environment dev
cd "$PROJECT_ROOT"
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

log=$(mktemp "${TMPDIR:-/tmp}/orthotrain-check.XXXXXX")
trap 'rm -f "$log"' EXIT

stage() {  # stage NAME COMMAND...
  local name=$1 started=$SECONDS code=0
  shift
  if [ "${CI:-}" = true ]; then
    say "--- $name: $*"
    "$@" || code=$?
  else
    "$@" >"$log" 2>&1 || code=$?
    if [ "$code" -ne 0 ]; then cat "$log"; fi
  fi
  if [ "$code" -ne 0 ]; then
    say "FAILED  $name after $((SECONDS - started)) s (exit status $code): $*" >&2
    exit 1
  fi
  printf 'ok      %-9s %4d s\n' "$name" "$((SECONDS - started))"
}

lint_imports='import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())'

started=$SECONDS
stage format "$PYTHON" -m ruff format --check .
stage lint "$PYTHON" -m ruff check .
stage types "$PYTHON" -m mypy
stage imports "$PYTHON" -c "$lint_imports" --no-logo
# orthotrain.integrations needs packages that the development environment does not have.
stage doctests "$PYTHON" -m pytest -q --doctest-modules --doctest-ignore-import-errors src
stage tests ./test.sh
# What the default run leaves out for its time: torch.compile, entry by entry gradient checks,
# killed commands. A developer runs it with ./test.sh -m slow.
if [ "${CI:-}" = true ]; then stage slow ./test.sh -m "slow and not gpu and not data"; fi
# The frameworks come last: the stages before run as on a machine that does not have them.
if [ "${CI:-}" = true ]; then
  if (install_group integrations); then
    # The slow ones, too: two processes, compiled models, exports.
    stage loops ./test.sh -m "not gpu and not data and not paper" --doctest-modules tests/integrations tests/layers/test_export.py src/orthotrain/integrations
  else
    say "skipped loops: the frameworks could not be installed, the lines above say why"
  fi
fi
say "all checks passed in $((SECONDS - started)) s"
