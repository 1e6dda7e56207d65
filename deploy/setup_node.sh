#!/usr/bin/env bash
# Installs exactly requirements.lock, which lies beside this script, into ~/venv. A node that has it does nothing.
set -euo pipefail

lock=$(cd "$(dirname "$0")" && pwd)/requirements.lock
venv=$HOME/venv
# The lock was resolved for it, and Ray wants the same on all nodes.
python=python3.12

if ! cmp -s "$lock" "$venv/requirements.lock"; then
    rm -rf "$venv"
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        sudo apt-get -o DPkg::Lock::Timeout=600 -qy update
        sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qy install "$python-venv"
    fi
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --disable-pip-version-check --no-cache-dir --quiet --require-hashes -r "$lock"
    cp "$lock" "$venv/requirements.lock"
fi

# The launcher's commands and `ray exec` read it.
path='export PATH="$HOME/venv/bin:$PATH"'
grep -qxF "$path" "$HOME/.bashrc" || echo "$path" >>"$HOME/.bashrc"
