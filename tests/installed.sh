#!/bin/sh
# Installs a wheel or sdist alone, in an empty directory, and uses it: sh tests/installed.sh PYTHON FILE
set -eu
python=$1 file=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
unset PYTHONPATH
"$python" -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$file[cli]"
cd "$place"
export PATH="$place/venv/bin:$PATH"
opero --version
opero init > /dev/null
opero check --all-envs
opero explain api --plain > /dev/null
printf 'from opero import opero\n@opero(policy="api")\ndef double(x: int) -> int:\n    return 2 * x\n' > app.py
[ "$(opero call app:double 21)" = 42 ]
python -c 'import opero, pathlib; assert pathlib.Path(opero.__file__).with_name("py.typed").is_file()'
