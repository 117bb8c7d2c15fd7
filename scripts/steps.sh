#!/usr/bin/env bash
# Runs the named make targets in order, stops at the first that fails, and ends with the time each took.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

names=()
seconds=()

summary() {
  local status=$? i total=0
  echo
  for i in "${!names[@]}"; do
    printf '%-12s %5d s  %s\n' "${names[$i]}" "${seconds[$i]}" "ok"
    total=$((total + seconds[i]))
  done
  if [[ -n ${current:-} ]]; then
    printf '%-12s %5d s  %s\n' "$current" "$((SECONDS - started))" "FAILED"
    total=$((total + SECONDS - started))
  fi
  printf '%-12s %5d s\n' total "$total"
  exit "$status"
}
trap summary EXIT

for step in "$@"; do
  current=$step
  started=$SECONDS
  echo "== $step"
  make --no-print-directory "$step"
  names+=("$step")
  seconds+=("$((SECONDS - started))")
  current=
done
