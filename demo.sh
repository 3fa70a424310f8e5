#!/usr/bin/env bash
# Trains the default recipe, dense and low-rank side by side, and writes a report.
#
#   ./demo.sh                 a few minutes on two CPU cores; run it again to go on after a stop
#   ./demo.sh --help          the options of `orthotrain train`, all of which may be given here
set -euo pipefail

# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/scripts/env.sh"

setup_environment run
cd "$PROJECT_ROOT"
"$PYTHON" -m orthotrain train --run-dir runs/demo "$@"

report="$PROJECT_ROOT/runs/demo/report/index.html"
if [ -f "$report" ]; then
  say ""
  say "The report: $report"
fi
