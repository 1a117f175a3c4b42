#!/bin/sh
# What must be on the machine before anything can be installed. Prints the Python to use on stdout; each missing thing
# is one plain line on stderr, and the exit status is then 2. PYTHON3=/path/to/python names an interpreter to use.
set -u

problems=0
missing() {
    echo "missing: $1; install it: $2" >&2
    problems=1
}

for tool in g++ make git; do
    command -v "$tool" >/dev/null 2>&1 || missing "$tool" "apt-get install $tool (or your system's package of that name)"
done

# One line a fact that is absent (nothing when the interpreter has everything), then its real path.
inspect='
import os, sys, sysconfig
if sys.version_info[:2] != (3, 11):
    sys.exit(1)
if not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")):
    print("headers")
folders = [sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib")]
folders += [os.path.join(folder, sysconfig.get_config_var("MULTIARCH") or "") for folder in folders]
if not any(os.path.isfile(os.path.join(folder, "libpython3.11.so.1.0")) for folder in folders):
    print("library")
try:
    import ensurepip, venv
except ImportError:
    print("venv")
print("=" + os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable))
'
python=""
lacks=""
for candidate in ${PYTHON3:-python3.11 python3 python /usr/bin/python3.11 /usr/local/bin/python3.11}; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    found=$("$candidate" -c "$inspect" 2>/dev/null) || continue
    if [ -z "$python" ] || [ "${found#=}" != "$found" ]; then
        python=${found##*=}
        lacks=${found%=*}
    fi
    [ -n "$lacks" ] || break
done

if [ -z "$python" ]; then
    other=$(python3 -c 'import sys; print("; python3 here is", sys.version.split()[0])' 2>/dev/null)
    missing "Python 3.11 (exactly 3.11: the Triton server loads a library built for it$other)" \
        "apt-get install python3.11 python3.11-dev python3.11-venv, or pyenv with PYTHON_CONFIGURE_OPTS=--enable-shared; PYTHON3=/path/to/python3.11 names one elsewhere"
fi
for lack in $lacks; do
    case $lack in
    headers) missing "the C headers of $python (Python.h)" "apt-get install python3.11-dev" ;;
    library) missing "libpython3.11.so.1.0 of $python, which the Triton server loads" \
        "apt-get install libpython3.11, or build Python with --enable-shared" ;;
    venv) missing "venv and pip of $python" "apt-get install python3.11-venv" ;;
    esac
done
[ "$problems" = 0 ] || exit 2

if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
    echo "note: this is $(uname -s) $(uname -m); the embedded Triton server runs on Linux x86_64 only, the rest of the line works" >&2
fi
echo "$python"
