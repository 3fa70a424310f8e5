#!/usr/bin/env bash
# Trains a small GPT on Python's own sources, then makes it smaller, beside narrow networks from
# scratch, and writes a report.
#
#   ./demo.sh                 about six minutes on two CPU cores; run it again to go on after a stop
#   ./demo.sh --help          the options of `orthotrain train`, all of which may be given here
set -euo pipefail

# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/scripts/env.sh"

setup_environment run

# A --run-dir among the options replaces this one. The command ends with the path of the report.
exec "$PYTHON" -m orthotrain train --run-dir "$PROJECT_ROOT/runs/demo" "$@"
