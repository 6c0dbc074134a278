# Shared by the scripts beside it; sourced, not run. Afterwards the current directory is the repository's root.

cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
export CARGO_TERM_COLOR=never
# The tests wait more than they compute.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-6}"
failed=

# step NAME COMMAND...: runs it; what fails is named at the end, and the steps after it run all the same.
step() {
    name=$1
    shift
    printf -- '--- %s\n' "$name"
    if ! "$@"; then
        printf 'FAILED: %s\n' "$name"
        failed="$failed; $name"
    fi
}

# Ends a script of steps.
finish() {
    [ -z "$failed" ] || {
        printf '%s: failed:%s\n' "$0" "${failed#;}"
        exit 1
    }
    printf '%s: passed\n' "$0"
}

# What cannot be had on this machine. .ci/run counts these lines.
skip() {
    printf 'skipped: %s\n' "$*"
}

# have PROGRAM [PACKAGE]: is it there, or can the system's package manager bring it?
have() {
    command -v "$1" > /dev/null && return
    [ $# -lt 2 ] || { apt-get -qq update && apt-get -qq -y install "$2"; } > /dev/null 2>&1 || return
    command -v "$1" > /dev/null
}

have_component() {
    cargo "$2" --version > /dev/null 2>&1 || rustup -q component add "$1" > /dev/null 2>&1
}

have_target() {
    [ -d "$(rustc --print sysroot)/lib/rustlib/$1/lib" ] || rustup -q target add "$1" > /dev/null 2>&1
}
