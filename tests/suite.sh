# Run the suite with one Python: first the tests that may run beside others, then those whose subject is real time, one by
# one, yet in a worker: one that hangs takes only that with it.
#   sh tests/suite.sh PYTHON PROCESSES [pytest arguments]
# TRY_ALONE=n: if no more than n tests fail beside others, they are run once more with nothing beside them, and that counts.
python=$1 processes=$2
shift 2
cache=$(cd "$(dirname "$python")/.." && pwd)/.pytest_cache # the Pythons do not share what has failed

run() {
    "$python" -m pytest -o cache_dir="$cache" "$@"
}

or_none() {
    "$@" || [ $? -eq 5 ] # none were selected
}

failed() {
    "$python" -c "import json, sys; print(len(json.load(open(sys.argv[1]))))" "$cache/v/cache/lastfailed" || echo 999
}

rm -f "$cache/v/cache/lastfailed"
or_none run --numprocesses "$processes" --dist loadfile --no-loadscope-reorder --max-worker-restart 3 -m "not alone" "$@"
code=$?
if [ $code -eq 1 ] && [ "$(failed)" -le "${TRY_ALONE:-0}" ]; then
    echo "These failed beside others and are run once more, alone:"
    run --numprocesses 1 --last-failed --last-failed-no-failures none "$@"
    code=$?
fi
[ $code -eq 0 ] || exit $code
or_none run --numprocesses 1 -m alone "$@"
