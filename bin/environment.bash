# Sourced by the programs of this folder: the virtual environment of the repository.
#
# Sets $root (the repository) and $python (the interpreter of $root/.venv).
# What was installed is remembered in stamp files that hold a hash of what the installation depends
# on, so that a second run starts at once.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() { say "$*"; exit 1; }

# Run apt-get as root, directly or through a sudo that asks nothing; fails if neither is possible.
apt_install() {
    local -a as_root=()
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    say "installing with apt: $*"
    local -a install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive
        apt-get install -y -qq --no-install-recommends "$@")
    "${install[@]}" >/dev/null 2>&1 || # a fresh image has no package lists yet
        { "${as_root[@]}" apt-get update -qq >&2 && "${install[@]}" >/dev/null; }
}

# The first interpreter that is new enough; $PYTHON goes first.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "Python 3.11 or later is needed (apt-get install python3), or name one in PYTHON"
}

make_venv() {
    # A virtual environment cannot be moved, so one that was copied along is made again.
    if [ -x "$python" ] && [ "$(cat "$venv/.root" 2>/dev/null)" = "$root" ]; then
        return
    fi
    local base
    base=$(find_python)
    if ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install python3-venv || true
        "$base" -c 'import ensurepip, venv' 2>/dev/null ||
            die "$base has no venv module: as root, apt-get install python3-venv"
    fi
    say "making $venv"
    "$base" -m venv --clear "$venv"
    printf '%s\n' "$root" >"$venv/.root"
}

# digest FILE...: one hash over the files and the interpreter's version.
digest() { { "$python" -V; cat "$@"; } | sha256sum | cut -d ' ' -f 1; }

# install NAME ARGUMENT...: pip install with the arguments, unless done before for this pyproject.
install() {
    local stamp=$venv/.installed-$1 wanted
    shift
    wanted=$(digest "$root/pyproject.toml")
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        say "pip install $*"
        (cd "$root" && "$python" -m pip install --quiet --disable-pip-version-check "$@" >&2)
        printf '%s\n' "$wanted" >"$stamp"
    fi
}

# prepare FUNCTION: run it with the environment locked against a second run at the same time.
prepare() {
    exec 9<"$root"
    if command -v flock >/dev/null; then
        flock 9
    fi
    make_venv
    "$@"
    exec 9<&-
}
