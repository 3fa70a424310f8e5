#!/usr/bin/env bash
# Trains the default recipe, dense and low-rank side by side, and writes a report.
#
#   ./demo.sh                 a few minutes on two CPU cores; run it again to go on after a stop
#   ./demo.sh --help          the options of `orthotrain train`, all of which may be given here
set -euo pipefail

# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/scripts/env.sh"

setup_environment run

run="$PROJECT_ROOT/runs/demo"
"$PYTHON" -m orthotrain train --run "$run" "$@"

# An option given here may have named another folder; the last one counts.
previous=""
for option in "$@"; do
  case "$option" in
    --help | -h) exit 0 ;;
    --run=*) run=${option#--run=} ;;
    *) if [ "$previous" = --run ]; then run=$option; fi ;;
  esac
  previous=$option
done
say ""
say "The report: $run/report/index.html"
