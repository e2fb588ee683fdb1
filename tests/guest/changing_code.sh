#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Boots a guest whose programs rewrite their code, share it, and make it without end: right results, at what cost, and in
# how much memory.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=bench/client/guest.sh
source "$root/bench/client/guest.sh"
programs=${BENCH_BIN:-$(dirname "$ring3")}
engine=jit only=() list=false
limit=${RING3_GUEST_SECONDS:-600} # seconds until a guest that hangs is killed
guest_mib=256
# For `endless`: the process is to have no more than this in memory besides the guest's own. A vCPU has up to 128 MiB of
# code, which count twice since they are mapped twice, 160 MiB that describe it, blocks of the interpreter, and tables.
bound_mib=480

usage() {
  cat <<EOF
Usage: tests/guest/changing_code.sh [OPTIONS]
Boots a Debian kernel with programs that do to code what makes translators throw theirs away, and checks each result.
Prints what each cost, in nanoseconds of the guest's clock, and for code without end the peak of ring3's memory, which is
to stay below the guest's $guest_mib MiB and $bound_mib more.

  --kernel FILE   this kernel instead of the newest one at hand
  --engine NAME   default $engine (see ring3 run --help)
  --only NAME     only this one (repeatable)
  --list          the names, the CPUs they need, and what one operation is

Environment: RING3 (the program to test; default build/bin/ring3), BENCH_BIN (where guest-changing-code and
bench-engine-jobs are; default the folder of RING3), RING3_GUEST_SECONDS (limit for each of two guests; default 600).
EOF
}

die() {
  printf 'changing_code.sh: %s\nfix: %s\n' "$1" "$2" >&2
  exit 2
}

while [[ $# -gt 0 ]]; do
  case $1 in
    --kernel) kernel=${2:?--kernel needs a file} && shift ;;
    --engine) engine=${2:?--engine needs a name} && shift ;;
    --only) only+=("${2:?--only needs a name}") && shift ;;
    --list) list=true ;;
    -h | --help) usage && exit 0 ;;
    *) die "unknown argument '$1'" "see tests/guest/changing_code.sh --help" ;;
  esac
  shift
done
program=$programs/guest-changing-code
for file in "$program" "$programs/bench-engine-jobs"; do
  [[ -x $file ]] || die "$file is not there" "./run --prepare builds it"
done
if $list; then
  "$program" --list
  exit 0
fi
find_guest
mapfile -t names < <("$program" --list | awk '{ print $1 }')
for name in ${only[@]+"${only[@]}"}; do
  [[ " ${names[*]} " == *" $name "* ]] || die "there is no '$name'" "see tests/guest/changing_code.sh --list"
done
[[ ${#only[@]} -eq 0 ]] || names=("${only[@]}")

# shellcheck source=tests/guest/checks.sh
source "$root/tests/guest/checks.sh"
scratch=$checks_scratch
install -D -m 755 -- "$program" "$scratch/root/init"
make_initrd
ring3_options=(--engine "$engine")
launcher=("$programs/bench-engine-jobs" --usage "$scratch/usage")

# in_guest CPUS NAME ...: boots a guest for these; a line each. Sets $ended: whether it did them all and powered off.
in_guest() {
  local names line name code=0
  cpus=$1 memory=${guest_mib}M
  shift
  names=$(IFS=, && echo "$*")
  # What the kernel does not know becomes the environment of /init.
  with_ring3 "console=ttyS0 quiet panic=-1 NAMES=$names" || code=$?
  ended=false
  for name in "$@"; do
    line=$(tr -d '\r' <"$scratch/out" | grep -a "^$name " | tail -n 1 || true)
    case $line in
      "$name ok "*) ok "$name: ${line##* } ns each" ;;
      "$name wrong: "*) failed "$name" "${line#*wrong: }" ;;
      *) failed "$name" "no result, exit code $code; $(tail_of "$scratch/out") $(tail_of "$scratch/err")" ;;
    esac
  done
  tr -d '\r' <"$scratch/out" | grep -axq end && [[ $code -eq 0 ]] && ended=true
  grep -aE 'stats: (cpu [0-9]+: .*(translated|emptied|interpreted)|[0-9.]+ s,)' "$scratch/err" | sed 's/^ring3: stats: /  /' || true
}

together=()
endless=false
for name in "${names[@]}"; do
  if [[ $name == endless ]]; then endless=true; else together+=("$name"); fi
done
if [[ ${#together[@]} -gt 0 ]]; then
  in_guest 2 "${together[@]}"
  if $ended; then ok "powers off"; else failed "powers off" "$(tail_of "$scratch/out")"; fi
fi
if $endless; then
  in_guest 1 endless
  if $ended; then
    peak=$(awk '{ printf "%d", $2 / 1024 }' "$scratch/usage")
    if [[ $peak -le $((guest_mib + bound_mib)) ]]; then
      ok "endless: at most $peak MiB in memory, with the guest's $guest_mib"
    else
      failed "endless: memory" "$peak MiB, more than $guest_mib for the guest and $bound_mib"
    fi
  fi
fi

finish_checks
