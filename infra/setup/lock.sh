#!/bin/sh
# Writes requirements/{main,dev,serving}.txt from pyproject.toml and requirements/serving.in.
# Needs `uv` on the PATH and a Python 3.11; indexes are the ones uv is configured with. Present pins are kept where
# they still fit: remove a line (or a file) to let it move.
set -eu
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

extras="--extra orchestrate --extra track --extra version --extra export --extra client"
touch requirements/main.txt requirements/dev.txt requirements/serving.txt
sed 's/ *#.*//' requirements/main.txt requirements/dev.txt | grep -v '^-' | grep . > "$work/pins" || true
compile="uv pip compile --python 3.11 --annotation-style line --no-header --quiet"

# One resolution of everything, so that main and dev fit each other; then each file is a part of it.
# torch carries a local version (+cpu) or CUDA packages depending on the build found: neither belongs into a lock.
part() {
    sed -E 's/^(torch==[^ +]+)\+[a-z0-9]+ */\1             /; /^(nvidia-|triton==|cuda-)/d; s/, -c [^,]*//; s/-c [^,]*, //; s/ *# via -c [^,]*$//' "$1" |
        sed -E 's/dino-foundry \(pyproject.toml\)/pyproject.toml/' | sed -E 's/ +$//'
}
mv "$work/pins" "$work/preferred.txt"
$compile pyproject.toml $extras --extra dev -o "$work/preferred.txt"
$compile pyproject.toml $extras -c "$work/preferred.txt" -o "$work/main.txt"

{
    echo "# The main environment (Python 3.11, Linux x86-64). Made by infra/setup/lock.sh from pyproject.toml; CUDA packages of torch are pip's business."
    part "$work/main.txt"
} > requirements/main.txt
{
    echo "# Tests and checks, beside main.txt. Made by infra/setup/lock.sh from pyproject.toml."
    echo "-c main.txt"
    cut -d' ' -f1 "$work/main.txt" | sort > "$work/main.names"
    part "$work/preferred.txt" | while read -r line; do
        grep -qxF -e "${line%% *}" -e "${line%% *}+cpu" "$work/main.names" || echo "$line"
    done
} > requirements/dev.txt
# Preferences, not bounds: what the two environments share is the same version where it fits.
{ sed 's/ *#.*//' requirements/serving.txt; grep -v '^numpy==' "$work/main.names"; } | grep . | sort -u -t= -k1,1 > "$work/serving.txt"
$compile requirements/serving.in -o "$work/serving.txt"
{
    echo "# The serving environment. Made by infra/setup/lock.sh from requirements/serving.in."
    part "$work/serving.txt"
} > requirements/serving.txt
wc -l requirements/main.txt requirements/dev.txt requirements/serving.txt
