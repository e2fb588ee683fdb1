#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `ring3 stat` beside running guests: those of `ring3 run`, and those of a program under `ring3 exec`.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
ring3=${RING3:-$root/build/bin/ring3}
client=$(dirname "$ring3")/kvm-client
limit=20 # seconds until a guest must have come so far

case ${1-} in
  '') ;;
  -h | --help)
    printf 'Usage: tests/guest/stat.sh\nEnvironment: RING3 (the program to test; default build/bin/ring3)\n'
    exit 0
    ;;
  *)
    printf 'stat.sh: unknown argument %q\nfix: it takes none\n' "$1" >&2
    exit 2
    ;;
esac
[[ -x $ring3 ]] || {
  printf 'stat.sh: %s is not there\nfix: ./run --build-only\n' "$ring3" >&2
  exit 2
}

# shellcheck source=tests/guest/checks.sh
source "$root/tests/guest/checks.sh"
t=$checks_scratch
guest=
# end_guest SIGNAL: its exit code is in $ended.
end_guest() {
  [[ -n $guest ]] || return 0
  kill -"$1" "$guest" 2>/dev/null || true
  ended=0
  wait "$guest" 2>/dev/null || ended=$?
  guest=
}
trap 'end_guest KILL; rm -rf -- "$checks_scratch"' EXIT

# stat_code WANT ARGUMENT ...: runs ring3 stat into $t/out and $t/err; false if the exit code is not that, or if it is
# not 0 and there is not one error with a fix.
stat_code() {
  local want=$1
  shift
  code=0
  limited "$limit" "$ring3" stat "$@" >"$t/out" 2>"$t/err" || code=$?
  [[ $code -eq $want ]] || return 1
  [[ $want -eq 0 ]] || [[ $(grep -c '^ring3: error: .' "$t/err") -eq 1 && $(grep -c '^fix: .' "$t/err") -eq 1 ]]
}
# instructions: of the first vCPU in $t/out.
instructions() { awk '/^  VM [0-9]+, vCPU [0-9]+: / { print $5; exit }' "$t/out"; }
# reaches CONDITION ...: within the limit, `ring3 stat $guest` shows what makes CONDITION true.
reaches() {
  local end=$((SECONDS + limit))
  while [[ $SECONDS -lt $end ]]; do
    if stat_code 0 "$guest" && "$@"; then return 0; fi
    sleep 0.05
  done
  return 1
}
has_run() { [[ $(instructions) -gt ${1-0} ]]; }
says() { grep -q -- "$1" "$t/out"; }
# check NAME CMD ...
check() {
  local name=$1
  shift
  if "$@"; then ok "$name"; else failed "$name" "exit code ${code-}; $(tail_of "$t/out"); $(tail_of "$t/err")"; fi
}

# --- nothing to show ---
for bad in abc 0 -1 99999999999; do check "PID '$bad'" stat_code 2 "$bad"; done
check "unknown option" stat_code 2 --unheard-of
check "a process that is none of ring3's" stat_code 1 $$
check "a process that is not there" stat_code 1 2147483647
check "--json is a list in any case" stat_code 0 --json
check "... that begins like one" says '^\['

# --- ring3 run ---
multiboot "$t/spin" '\xfa\xeb\xfe' # cli; jmp .
"$ring3" run --quiet --kernel "$t/spin" --cpus 2 </dev/null >"$t/guest-out" 2>&1 &
guest=$!
check "ring3 run: instructions" reaches has_run
first=$(instructions)
check "ring3 run: more of them later" reaches has_run "$first"
check "ring3 run: both vCPUs" says "^$guest ring3: 2 vCPUs$"
check "ring3 run: --json" stat_code 0 --json "$guest"
check "ring3 run: --json has the process" says "\"pid\": $guest,"
check "ring3 run: without PID" stat_code 0
check "ring3 run: without PID, it is there" says "^$guest ring3: 2 vCPUs$"
check "a process that is there and one that is not" stat_code 1 "$guest" 2147483647
check "... shows the first" says "^$guest ring3: 2 vCPUs$"
code=0
limited "$limit" "$ring3" stat "$guest" >/dev/full 2>"$t/err" || code=$?
check "standard output that is full" test "$code" -eq 1
gone=$guest
end_guest TERM
check "ring3 run: was not disturbed" test "$ended" -eq 143
check "ring3 run: is gone" stat_code 1 "$gone"

kernel=$(find "${RING3_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/ring3}/kernel" /boot -name 'vmlinuz-*' -type f \
  -print -quit 2>/dev/null || true)
if [[ -n $kernel ]]; then
  "$ring3" run --quiet --kernel "$kernel" -- sleep 1000 </dev/null >"$t/guest-out" 2>&1 &
  guest=$!
  check "Linux: blocks are translated" reaches says '^    [1-9][0-9]* blocks translated'
  check "Linux: some instructions never are" reaches says '^    never translated: .*wrmsr [0-9]'
  end_guest TERM
else
  skip "Linux" "no Debian kernel at hand"
fi

# --- ring3 exec ---
if [[ -x $client ]]; then
  "$ring3" exec --quiet -- "$client" --gtest_repeat=100000 --gtest_filter='KvmRun.*' </dev/null >"$t/guest-out" 2>&1 &
  guest=$!
  check "ring3 exec: instructions" reaches has_run
  check "ring3 exec: its name" says "^$guest kvm-client: "
  end_guest TERM
else
  skip "ring3 exec" "$client is not there"
fi

finish_checks
