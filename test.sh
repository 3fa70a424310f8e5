#!/usr/bin/env bash
# Runs the tests. Options go to pytest.
#
#   ./test.sh                          the default run, under five minutes on two cores
#   ./test.sh -n 0 tests/linalg        one part, in one process
#   ./test.sh -m slow                  what the default run leaves out (also: gpu, data, paper)
set -euo pipefail

# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/scripts/env.sh"

setup_environment dev
cd "$PROJECT_ROOT"
# One thread per process: the tests are many small problems, and one process per core is faster.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
exec "$PYTHON" -m pytest -q -n auto --maxprocesses 8 "$@"
