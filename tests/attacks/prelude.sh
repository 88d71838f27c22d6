# Functions of the scripts of attempts, which run in bash, in a sandbox and outside.
# shellcheck shell=bash disable=SC2034

# Prints the mark of an attempt that succeeded. The word is never part of a command line.
broken() { printf 'BRO%s %s\n' KEN "$*"; }

# Runs a Python program of standard input, after the definitions of PYTHON.
python() { /usr/bin/python3 -c "$PYTHON$(cat)" "$@"; }

# Waits at most 20 s until a command succeeds.
wait_for() {
    for _ in $(seq 400); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.05
    done
    echo "did not succeed: $*" >&2
    return 1
}

PYTHON='
import ctypes, errno, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def broken(*words):
    print("BRO" + "KEN", *words, flush=True)
def call(number, *arguments):
    def convert(a):
        return ctypes.c_char_p(a) if isinstance(a, bytes) else a if hasattr(a, "_type_") or hasattr(a, "_length_") else ctypes.c_long(a)
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(ctypes.c_long(number), *[convert(a) for a in arguments])
    return (result, 0) if result != -1 else (-1, ctypes.get_errno())
def refused(what, number, *arguments, by=("EPERM", "ENOSYS", "EACCES", "EROFS")):
    result, error = call(number, *arguments)
    name = errno.errorcode.get(error, str(error))
    if result != -1 or name not in by:
        broken(what, result, name)
    else:
        print(what, name)
'
