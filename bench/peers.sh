#!/bin/sh
# Installs the peers that benchmarks are run against: Debian's packages where this is root on Debian, the others with pip
# into the environment whose python is given (default: .venv/bin/python). What cannot be had is left out by the bench.
set -u
python=${1:-.venv/bin/python}
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    for package in parallel task-spooler nq make e2fsprogs; do
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null || echo "not to be had: $package"
    done
fi
for package in "dask distributed" hyperqueue; do
    # shellcheck disable=SC2086
    "$python" -m pip install --quiet --disable-pip-version-check $package || echo "not to be had: $package"
done
