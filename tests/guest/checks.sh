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

# little_endian NUMBER: its four bytes.
little_endian() {
  local hex
  hex=$(printf '%08x' $(($1 & 0xffffffff)))
  printf '%b' "\\x${hex:6:2}\\x${hex:4:2}\\x${hex:2:2}\\x${hex:0:2}"
}

# multiboot FILE CODE: a kernel that is the 32-bit machine code CODE (as printf's escapes) at 0x100020.
multiboot() {
  local magic=0x1badb002 flags=0x10000 load=0x100000 word
  {
    for word in $magic $flags $((-(magic + flags))) $load $load 0 0 $((load + 0x20)); do little_endian "$word"; done
    printf '%b' "$2"
  } >"$1"
}

finish_checks() { [[ $checks_failed -eq 0 ]]; }
