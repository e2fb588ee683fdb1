#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the jobs of bench/engine in a guest in which translator and interpreter are compared block by block, and compares
# what they write with what they write on this machine.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=bench/client/guest.sh
source "$root/bench/client/guest.sh"
# shellcheck source=bench/client/engine_jobs.sh
source "$root/bench/client/engine_jobs.sh"
programs=${BENCH_BIN:-$(dirname "$ring3")}
engine=lockstep part=4 only=()
limit=${RING3_JOBS_SECONDS:-3600}

usage() {
  cat <<EOF
Usage: tests/guest/lockstep_jobs.sh [OPTIONS]
Boots a Debian kernel with --engine lockstep and runs this machine's gzip, xz, awk, sqlite3, gcc and sha256sum in it. A
difference between translator and interpreter ends the guest; else what each has written is what it writes natively.

  --only NAME     only this job of bench/engine (repeatable); default: those for one CPU
  --part N        files N times smaller than those of bench/engine; default $part
  --kernel FILE   this kernel instead of the newest one at hand
  --engine NAME   default $engine (see ring3 run --help)

Environment: RING3 (the program to test; default build/bin/ring3), BENCH_BIN (where bench-engine-jobs is; default the
folder of RING3), RING3_JOBS_SECONDS (limit for all of it; default 3600).
EOF
}

die() {
  printf 'lockstep_jobs.sh: %s\nfix: %s\n' "$1" "$2" >&2
  exit 2
}

while [[ $# -gt 0 ]]; do
  case $1 in
    --only) only+=("${2:?--only needs the name of a job}") && shift ;;
    --part) part=${2:?--part needs a number} && shift ;;
    --kernel) kernel=${2:?--kernel needs a file} && shift ;;
    --engine) engine=${2:?--engine needs a name} && shift ;;
    -h | --help) usage && exit 0 ;;
    *) die "unknown argument '$1'" "see tests/guest/lockstep_jobs.sh --help" ;;
  esac
  shift
done
[[ $part =~ ^[1-9][0-9]*$ ]] || die "--part '$part' is not a number" "see tests/guest/lockstep_jobs.sh --help"
jobs=$programs/bench-engine-jobs
[[ -x $jobs ]] || die "$jobs is not there" "./run --prepare builds it"
find_guest

# shellcheck source=tests/guest/checks.sh
source "$root/tests/guest/checks.sh"
scratch=$checks_scratch
: >"$scratch/left-out"
"$jobs" --list | awk -v only="${only[*]}" '
  only == "" ? $2 == 1 : index(" " only " ", " " $1 " ") { print "job", $1, $2 }' >"$scratch/names"
for name in ${only[@]+"${only[@]}"}; do
  grep -q "^job $name " "$scratch/names" || die "there is no job '$name'" "see bench/engine --list"
done
drop_missing_jobs
while read -r name rest; do skip "$name" "$rest"; done < <(sed 's/ is left out: / /' "$scratch/left-out")
mapfile -t names < <(awk '{ print $2 }' "$scratch/names")
if [[ ${#names[@]} -eq 0 ]]; then
  finish_checks
  exit
fi
list=$(IFS=, && echo "${names[*]}")

make_job_files "$jobs" "$part"
NAMES=$list "$jobs" --run "$scratch/files" >"$scratch/native" || die "the jobs fail on this machine" "run $jobs --run"
install -D -m 755 -- "$jobs" "$scratch/root/init"
make_initrd

ring3_options=(--engine "$engine")
cpus=$(awk '$3 > max { max = $3 } END { print max }' "$scratch/names")
code=0
# What the kernel does not know becomes the environment of /init.
with_ring3 "console=ttyS0 quiet panic=-1 NAMES=$list" || code=$?
tr -d '\r' <"$scratch/out" >"$scratch/log"
for name in "${names[@]}"; do
  read -r seconds result < <(awk -v name="$name" '$1 == name { print $2, $3 }' "$scratch/log") || true
  read -r want < <(awk -v name="$name" '$1 == name { print $3 }' "$scratch/native") || true
  if [[ -n ${want-} && ${result-} == "$want" ]]; then
    ok "$name, $engine: as natively, in $seconds s"
  else
    failed "$name, $engine" "result '${result-}', not '${want-}'"
  fi
  seconds='' result='' want=''
done
if [[ $code -eq 0 ]] && grep -axq end "$scratch/log"; then
  ok "$engine: powers off, no difference"
else
  failed "$engine: powers off, no difference" "exit code $code; $(tail_of "$scratch/log")"
  sed 's/^/  /' "$scratch/err"
fi
grep -aE 'stats: (cpu [0-9]+: .*(translated|compared|interpreted)|[0-9.]+ s,)' "$scratch/err" | sed 's/^ring3: stats: /  /' || true

finish_checks
