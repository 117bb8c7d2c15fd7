#!/usr/bin/env bash
# Measures Holdfast beside the newest restic there is: same data, same machine, one run, page cache warm.
#
#   benches/compare.sh [--rounds N] [--rows files,sqlite,stream,postgres] [--scale 0.05]
#
# Data and repositories lie in $HOLDFAST_BENCH_DIR (default /var/tmp/holdfast-bench; about 12 GB). `make bench` builds
# the programs and fetches restic first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cache=${HOLDFAST_CACHE:-$HOME/.cache/holdfast}
export HOLDFAST_BENCH_DIR=${HOLDFAST_BENCH_DIR:-/var/tmp/holdfast-bench}
export HOLDFAST_BENCH_RESTIC=${HOLDFAST_BENCH_RESTIC:-$cache/tools/restic-newest}
export HOLDFAST_BENCH_PROGRAMS=${HOLDFAST_BENCH_PROGRAMS:-$PWD/target/release}

[[ -x $HOLDFAST_BENCH_RESTIC ]] || HOLDFAST_BENCH_RESTIC=$(command -v restic) ||
  { echo "compare.sh: there is no restic: run 'make bench-setup'" >&2; exit 1; }
for program in holdfast holdfast-agent holdfast-controller; do
  [[ -x $HOLDFAST_BENCH_PROGRAMS/$program ]] ||
    { echo "compare.sh: $HOLDFAST_BENCH_PROGRAMS/$program is missing: run 'make build'" >&2; exit 1; }
done
mkdir -p "$HOLDFAST_BENCH_DIR"
exec python3 benches/compare.py "$@"
