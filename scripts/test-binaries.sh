#!/usr/bin/env bash
# Builds our programs as the tests run them, fail points included, and tells the test runner where they are.
# HOLDFAST_TEST_BINARIES=DIR in the environment takes programs that are built already, such as a release.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z ${HOLDFAST_TEST_BINARIES:-} ]]; then
  cargo build --quiet --workspace --bins --all-features
  target=$(cargo metadata --format-version 1 --no-deps --offline |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
  HOLDFAST_TEST_BINARIES=$target/debug
fi
echo "HOLDFAST_TEST_BINARIES=$HOLDFAST_TEST_BINARIES" >>"$NEXTEST_ENV"
