# shellcheck shell=bash
# Sourced by demo.sh, test.sh and check.sh: makes .venv once, then leaves it alone.
#
#   setup_environment run        what `orthotrain train` needs
#   setup_environment dev        the same and the tools that test and check the project
#
# Afterwards "$PYTHON" is the interpreter of the project's own environment. A stamp file in
# .venv holds a hash of what was asked for, so a second run installs nothing and needs no
# network.

PROJECT_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="$PROJECT_ROOT/.venv"
PYTHON="$VENV/bin/python"
SETUP_LOG="$VENV/setup.log"
CPU_INDEX="https://download.pytorch.org/whl/cpu"

# An environment with the development tools measures 1.4 GB with a CPU build of torch; pip
# unpacks beside it. The CUDA libraries of a GPU build bring it to about 6 GB.
DISK_MB_CPU=3000
DISK_MB_GPU=8000

say() { printf '%s\n' "$*"; }

die() {
  printf 'error: %s\n' "$1" >&2
  shift
  local line
  for line in "$@"; do printf '       %s\n' "$line" >&2; done
  exit 1
}

# Prints ORTHOTRAIN_PYTHON if that is set, else the first Python of at least 3.11 on the PATH.
# Each candidate is run, because a launcher of that name may exist for a version that is not
# installed.
find_python() {
  local name
  if [ -n "${ORTHOTRAIN_PYTHON:-}" ]; then set -- "$ORTHOTRAIN_PYTHON"; else
    set -- python3.11 python3.12 python3.13 python3.14 python3 python
  fi
  for name in "$@"; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$name"
      return 0
    fi
  done
  return 1
}

has_nvidia_gpu() { [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null 2>&1; }

wants_cpu_build() { [ "$(uname -s)" = Linux ] && ! has_nvidia_gpu; }

check_disk() {
  local need free
  need=$DISK_MB_CPU
  if has_nvidia_gpu; then need=$DISK_MB_GPU; fi
  free=$(df -Pm "$PROJECT_ROOT" | awk 'NR == 2 {print $4}')
  if [ "$free" -lt "$need" ]; then
    die "not enough disk space in $PROJECT_ROOT: $free MB free, $need MB needed." \
      "Free some space, or clone the project to a larger disk, and run this again."
  fi
}

make_venv() {
  local python version where="on the PATH"
  if [ -n "${ORTHOTRAIN_PYTHON:-}" ]; then where="as ORTHOTRAIN_PYTHON=$ORTHOTRAIN_PYTHON"; fi
  # A whole environment starts; a broken one (half made, or its Python is gone) is replaced.
  if [ -x "$PYTHON" ] && "$PYTHON" -m pip --version >/dev/null 2>&1; then return 0; fi
  python=$(find_python) || die "Python 3.11 or later was not found $where." \
    "Install it (Debian, Ubuntu: sudo apt install python3 python3-venv; macOS: brew install python@3.11)," \
    "or name one: ORTHOTRAIN_PYTHON=/path/to/python3.11 $0"
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  "$python" -c 'import venv, ensurepip' >/dev/null 2>&1 || die \
    "$python (Python $version) cannot make a virtual environment: venv or ensurepip is missing." \
    "Debian, Ubuntu: sudo apt install python3-venv   (or python$version-venv)" \
    "Other systems: install the complete Python $version, or name another one with ORTHOTRAIN_PYTHON."
  check_disk
  say "Making .venv with Python $version ($python)"
  rm -rf "$VENV"
  "$python" -m venv "$VENV" || die "making the virtual environment failed; the lines above say why." \
    "Debian, Ubuntu: sudo apt install python3-venv   (or python$version-venv)"
}

# quietly WHAT COMMAND...: pip's own lines go to a log that is shown only when it fails.
quietly() {
  local what=$1 started=$SECONDS
  shift
  say "Installing $what"
  if "$@" >>"$SETUP_LOG" 2>&1; then
    say "  done in $((SECONDS - started)) s"
    return 0
  fi
  tail -n 25 "$SETUP_LOG" >&2
  if grep -qiE 'no space left|errno 28' "$SETUP_LOG"; then
    die "the disk is full: installing $what failed." "Free some space and run this again; it goes on where it stopped."
  fi
  die "installing $what failed; the last lines of $SETUP_LOG are above." \
    "The first setup needs the network (or a pip configuration that names a mirror). Run this again; it goes on where it stopped."
}

pip_install() {
  "$PYTHON" -m pip install --disable-pip-version-check --no-input -c "$PROJECT_ROOT/constraints.txt" "$@"
}

# On Linux, PyPI's own torch brings several GB of CUDA libraries. Without a GPU the CPU build is
# asked for as well, where its index answers; pip prefers it, and the pin fits both.
torch_index_options() {
  wants_cpu_build || return 0
  if "$PYTHON" - "$CPU_INDEX/torch/" >/dev/null 2>&1 <<'PY'; then
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=5)
PY
    printf -- '--extra-index-url\n%s\n' "$CPU_INDEX"
  fi
}

# Prints the requirements of one dependency group of pyproject.toml, one a line. (pip reads
# groups by itself from 25.1 on; the pip that comes with Python 3.11 is older.)
dependency_group() {
  "$PYTHON" - "$PROJECT_ROOT/pyproject.toml" "$1" <<'PY'
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    print("\n".join(tomllib.load(file)["dependency-groups"][sys.argv[2]]))
PY
}

# What decides whether an environment is up to date. The folder is part of it: an editable
# install points at it, and a moved project must be installed again.
wanted_stamp() {
  "$PYTHON" - "$PROJECT_ROOT" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
digest = hashlib.sha256(repr((str(root), sys.version_info[:3])).encode())
for name in ("pyproject.toml", "constraints.txt"):
    digest.update((root / name).read_bytes())
print(digest.hexdigest())
PY
}

is_current() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

read_lines() {  # read_lines COMMAND...: fills the array ITEMS (macOS has bash 3.2, without mapfile)
  local line text
  ITEMS=()
  text=$("$@")
  while IFS= read -r line; do
    if [ -n "$line" ]; then ITEMS+=("$line"); fi
  done <<<"$text"
}

install_group() {
  read_lines dependency_group "$1"
  quietly "what pyproject.toml lists as group $1" pip_install "${ITEMS[@]}"
}

setup_environment() {
  local group=$1 stamp wanted pin
  stamp="$VENV/setup-$group.stamp"
  make_venv
  wanted=$(wanted_stamp)
  if is_current "$stamp" "$wanted"; then return 0; fi

  say "Setting up .venv (once; about two minutes, 1.5 GB with the CPU build of torch)"
  : >"$SETUP_LOG"
  pin=$(grep -E '^torch==' "$PROJECT_ROOT/constraints.txt")
  read_lines torch_index_options
  quietly "$pin" pip_install ${ITEMS[@]+"${ITEMS[@]}"} "$pin"
  # The build backend comes first and from the same pins, so that no isolated build
  # environment is made: that one would ignore the pins and ask the network each time.
  quietly "the build backend" pip_install hatchling
  quietly "orthotrain and what it needs" pip_install --no-build-isolation -e "${PROJECT_ROOT}[lab]"
  if [ "$group" = dev ]; then
    install_group dev
    # What runs needs is a part of it.
    printf '%s\n' "$wanted" >"$VENV/setup-run.stamp"
  fi
  printf '%s\n' "$wanted" >"$stamp"
  say "Setup is complete."
}
