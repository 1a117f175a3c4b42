#!/bin/sh
# Makes the environments named (main, dev, serving, triton; see environments.py) once the machine has what they need.
set -eu
here=$(dirname "$0")
python=$("$here/preflight.sh")
exec "$python" "$here/environments.py" "$@"
