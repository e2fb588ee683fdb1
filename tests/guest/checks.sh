# SPDX-License-Identifier: Apache-2.0
# Sourced by the guest tests: one line a check on standard output ("ok NAME", "FAIL NAME: WHY" or "skip NAME: WHY"),
# which ./test counts. A script that sources this ends with finish_checks.
# shellcheck shell=bash

checks_failed=0
checks_scratch=$(mktemp -d "${TMPDIR:-/tmp}/ring3-test.XXXXXX")
trap 'rm -rf -- "$checks_scratch"' EXIT

ok() { printf 'ok %s\n' "$1"; }
skip() { printf 'skip %s: %s\n' "$1" "$2"; }
failed() {
  printf 'FAIL %s: %s\n' "$1" "$2"
  checks_failed=$((checks_failed + 1))
}

# limited SECONDS CMD ...: as CMD, but killed when it takes longer; then the exit code is 137. Signals have their default
# actions, whatever this script inherited.
limited() {
  local seconds=$1
  shift
  env --default-signal=INT,TERM,PIPE timeout --foreground --signal=KILL "$seconds" "$@"
}

# The last lines of a file on one line.
tail_of() { tail -n "${2:-3}" -- "$1" | tr -cd '[:print:]\n' | tr '\n' '|' | cut -c 1-400; }

finish_checks() { [[ $checks_failed -eq 0 ]]; }
