# Print the path of each Python that the suite runs on, one a line: 3.11, 3.12 and 3.13 where they are present, on the
# PATH or under pyenv; else any python3 from 3.11 on. PYTHON=/path/to/python names the only one.
works() { "$1" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11) or not '$2' in ('', '%d.%d' % sys.version_info[:2]))" 2>/dev/null; }
real() { "$1" -c 'import sys; print(sys.executable)'; }

if [ -n "$PYTHON" ]; then
    works "$PYTHON" "" && real "$PYTHON"
    exit
fi
found=
for version in 3.11 3.12 3.13; do
    for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/$version.*/bin/python; do
        if works "$candidate" "$version"; then
            real "$candidate"
            found=yes
            break
        fi
    done
done
[ -n "$found" ] || { works python3 "" && real python3; }
