#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs Debian's stress-ng in a guest: it checks its own results, and the guest's kernel has nothing to complain about.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=bench/client/guest.sh
source "$root/bench/client/guest.sh"
seconds=60 cpus=4 memory=1G engine=jit

usage() {
  cat <<EOF
Usage: tests/guest/stress.sh [OPTIONS]
Boots a Debian kernel and runs this machine's stress-ng in it: computations of all kinds and memory, both verified, context
switches, forks, memory maps, futexes and signals, all at once. Prints what stress-ng says it did and ring3's statistics.

  --seconds N     how long; default $seconds
  --cpus N        of the guest; default $cpus
  --memory SIZE   of the guest; default $memory
  --kernel FILE   this kernel instead of the newest one at hand
  --engine NAME   default $engine (see ring3 run --help)

Environment: RING3 (the program to test; default build/bin/ring3).
EOF
}

die() {
  printf 'stress.sh: %s\nfix: %s\n' "$1" "$2" >&2
  exit 2
}

while [[ $# -gt 0 ]]; do
  case $1 in
    --seconds) seconds=${2:?--seconds needs a number} && shift ;;
    --cpus) cpus=${2:?--cpus needs a number} && shift ;;
    --memory) memory=${2:?--memory needs a size} && shift ;;
    --kernel) kernel=${2:?--kernel needs a file} && shift ;;
    --engine) engine=${2:?--engine needs a name} && shift ;;
    -h | --help) usage && exit 0 ;;
    *) die "unknown argument '$1'" "see tests/guest/stress.sh --help" ;;
  esac
  shift
done
[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "--seconds '$seconds' is not a number of seconds" "see tests/guest/stress.sh --help"
[[ $cpus =~ ^[1-9][0-9]*$ ]] || die "--cpus '$cpus' is not a number of CPUs" "see tests/guest/stress.sh --help"
find_guest

# shellcheck source=tests/guest/checks.sh
source "$root/tests/guest/checks.sh"
scratch=$checks_scratch
stress=$(PATH=/usr/bin:/bin type -P stress-ng) || {
  skip "stress-ng" "it is not installed (apt-get install stress-ng)"
  finish_checks
  exit
}

stressors=(
  --cpu "$cpus" --cpu-method all
  --vm 2 --vm-bytes 64M --vm-method all
  --switch 2
  --fork 2
  --mmap 2 --mmap-bytes 16M
  --futex 2
  --signal 2 --sigq 2 --kill 1
)
put_into_root "$stress"
install -D -m 755 -- "$busybox" "$scratch/root/bin/busybox"
mkdir -p "$scratch"/root/{dev,proc,sys,tmp}
cat >"$scratch/root/init" <<EOF
#!/bin/busybox sh
b=/bin/busybox
\$b mount -t devtmpfs dev /dev
\$b mount -t proc proc /proc
\$b mount -t sysfs sys /sys
\$b mount -t tmpfs tmp /tmp
\$b mkdir -p /dev/shm
\$b mount -t tmpfs shm /dev/shm
cd /tmp
$stress ${stressors[*]} --timeout ${seconds}s --verify --oomable --metrics-brief --times 2>&1
echo "stress-ng's exit code: \$?"
\$b poweroff -f
EOF
chmod 755 "$scratch/root/init"
make_initrd

ring3_options=(--engine "$engine")
limit=$((2 * seconds + 300))
code=0
# All that the kernel says goes to the console.
with_ring3 'console=ttyS0 loglevel=7 panic=-1' || code=$?
tr -d '\r' <"$scratch/out" >"$scratch/log"
name="stress-ng, $seconds s, $cpus CPUs"
if [[ $code -eq 0 ]]; then
  ok "$name: powers off"
else
  failed "$name: powers off" "exit code $code; $(tail_of "$scratch/log") $(tail_of "$scratch/err")"
fi
if grep -aq "stress-ng's exit code: 0\$" "$scratch/log"; then
  ok "$name: nothing failed"
else
  failed "$name: nothing failed" \
    "$(grep -aE "stress-ng: (fail|error)|stress-ng's exit code" "$scratch/log" | head -n 5 | tr '\n' '|')"
fi
bad='BUG:|Oops|WARNING:|[Rr][Cc][Uu].*(stall|starved)|soft lockup|hard LOCKUP|blocked for more than|segfault|unhandled|general protection|traps:|Call Trace|Kernel panic|clocksource: timekeeping watchdog'
if grep -aE "$bad" "$scratch/log" >"$scratch/bad"; then
  failed "$name: the kernel has nothing to say" "$(head -n 5 "$scratch/bad" | tr '\n' '|')"
  sed 's/^/  /' "$scratch/log"
else
  ok "$name: the kernel has nothing to say"
fi
grep -a 'stress-ng: ' "$scratch/log" | sed 's/^/  /' || true
sed 's/^ring3: stats: /  /' "$scratch/err"

finish_checks
