#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Boots a Debian kernel to user space, runs commands in it, and checks their output and exit codes.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
ring3=${RING3:-$root/build/bin/ring3}
kernel=()
engine=()
cpu_counts=(1 2 8)
boots=0
limit=${RING3_BOOT_SECONDS:-240}
only_cpus=false

usage() {
  cat <<EOF
Usage: tests/guest/boot.sh [OPTIONS]
Boots a Debian kernel with ring3 and checks what comes out.

  --kernel FILE   this kernel instead of the newest one at hand
  --engine NAME   this engine instead of the default (see ring3 run --help)
  --cpus LIST     CPU counts to boot with, separated by commas (default 1,2,8)
  --cpus-only     only the boots, not the checks of exit codes and pipes
  --boots N       N more boots with 2 CPUs, one after another

Environment: RING3 (the program to test; default build/bin/ring3), RING3_BOOT_SECONDS (limit for one boot; default 240).
EOF
}

usage_error() {
  printf 'boot.sh: %s\nfix: see tests/guest/boot.sh --help\n' "$1" >&2
  exit 2
}

while [[ $# -gt 0 ]]; do
  case $1 in
    --kernel) kernel=(--kernel "${2:?--kernel needs a file}") && shift ;;
    --engine) engine=(--engine "${2:?--engine needs a name}") && shift ;;
    --cpus) IFS=, read -r -a cpu_counts <<<"${2:?--cpus needs a list}" && shift ;;
    --cpus-only) only_cpus=true ;;
    --boots) boots=${2:?--boots needs a number} && shift ;;
    -h | --help) usage && exit 0 ;;
    *) usage_error "unknown argument '$1'" ;;
  esac
  shift
done
[[ $boots =~ ^[0-9]+$ ]] || usage_error "--boots '$boots' is not a number"
[[ -x $ring3 ]] || usage_error "$ring3 is not there; ./run --build-only builds it"

# shellcheck source=tests/guest/checks.sh
source "$root/tests/guest/checks.sh"
out=$checks_scratch/out err=$checks_scratch/err
name=${kernel[1]:-newest kernel}
name=${name##*/}

# expect NAME CODE OUTPUT CMD ...: runs CMD in a guest; its output and exit code are to be these.
expect() {
  local what=$1 want_code=$2 want_output=$3 code=0
  shift 3
  limited "$limit" "$ring3" run --quiet "${kernel[@]}" "${engine[@]}" "$@" >"$out" 2>"$err" || code=$?
  if [[ $code -ne $want_code ]]; then
    failed "$what" "exit code $code, not $want_code; $(tail_of "$err")"
  elif [[ $(<"$out") != "$want_output" ]]; then
    failed "$what" "output '$(tail_of "$out")', not '$want_output'"
  else
    ok "$what"
  fi
}

for n in "${cpu_counts[@]}"; do
  expect "$name, $n CPUs: boots, runs a command, powers off" 0 "$n" --cpus "$n" -- nproc </dev/null
done

if ! $only_cpus; then
  expect "$name: exit code 7 passes through" 7 "" -- sh -c 'exit 7' </dev/null
  expect "$name: standard input passes through" 0 hi -- cat < <(echo hi)

  # Standard error is its own stream, and arguments arrive as they were given.
  code=0
  # shellcheck disable=SC2016 # expanded in the guest
  limited "$limit" "$ring3" run --quiet "${kernel[@]}" "${engine[@]}" -- sh -c 'echo "$1"; echo oops >&2' sh "a  'b" \
    </dev/null >"$out" 2>"$err" || code=$?
  if [[ $code -eq 0 && $(<"$out") == "a  'b" && $(tr -d '\r' <"$err") == oops ]]; then
    ok "$name: arguments and standard error pass through"
  else
    failed "$name: arguments and standard error pass through" "exit code $code, '$(tail_of "$out")', '$(tail_of "$err")'"
  fi

  # Without a command the console is a shell; powering off is exit code 0.
  code=0
  # shellcheck disable=SC2016 # expanded in the guest
  printf 'echo six-times-seven-is-$((6*7))\npoweroff -f\n' |
    limited "$limit" "$ring3" run --quiet "${kernel[@]}" "${engine[@]}" >"$out" 2>"$err" || code=$?
  if [[ $code -eq 0 ]] && grep -q six-times-seven-is-42 "$out"; then
    ok "$name: a shell on the serial console"
  else
    failed "$name: a shell on the serial console" "exit code $code; $(tail_of "$out")"
  fi
fi

for ((i = 1; i <= boots; ++i)); do
  expect "$name: boot $i of $boots" 0 2 --cpus 2 -- nproc </dev/null
done

finish_checks
