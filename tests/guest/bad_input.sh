#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What must not work, and guests that misbehave: each ends within seconds, with one clear line, what to do about it, and
# the right exit code.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
ring3=${RING3:-$root/build/bin/ring3}
limit=20 # seconds until a check that hangs is killed

case ${1-} in
  '') ;;
  -h | --help)
    printf 'Usage: tests/guest/bad_input.sh\nEnvironment: RING3 (the program to test; default build/bin/ring3)\n'
    exit 0
    ;;
  *)
    printf 'bad_input.sh: unknown argument %q\nfix: it takes none\n' "$1" >&2
    exit 2
    ;;
esac
[[ -x $ring3 ]] || {
  printf 'bad_input.sh: %s is not there\nfix: ./run --build-only\n' "$ring3" >&2
  exit 2
}

# shellcheck source=tests/guest/checks.sh
source "$root/tests/guest/checks.sh"
t=$checks_scratch
err=$t/err

# judge NAME CODE WANT_CODE [error]: the exit code, and for an error its two lines in $err.
judge() {
  local errors
  errors=$(grep -c '^ring3: error: .' "$err" || true)
  if [[ $2 -eq 137 ]]; then
    failed "$1" "still running after $limit seconds"
  elif [[ $2 -ne $3 ]]; then
    failed "$1" "exit code $2, not $3; $(tail_of "$err")"
  elif [[ ${4-} == error && $errors -ne 1 ]]; then
    failed "$1" "$errors error lines, not one; $(tail_of "$err")"
  elif [[ ${4-} == error ]] && ! grep -q '^fix: .' "$err"; then
    failed "$1" "no fix line; $(tail_of "$err")"
  elif [[ ${4-} == error && $(wc -l <"$err") -gt 2 ]]; then
    failed "$1" "more than two lines; $(tail_of "$err" 5)"
  else
    ok "$1"
  fi
}

# refused NAME CODE ARGUMENT ...: ring3 run --quiet ARGUMENT ... must refuse.
refused() {
  local name=$1 want=$2 code=0
  shift 2
  limited "$limit" "$ring3" run --quiet "$@" </dev/null >/dev/null 2>"$err" || code=$?
  judge "$name" "$code" "$want" error
}

# --- images ---
kernel=$(find "${RING3_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/ring3}/kernel" /boot -name 'vmlinuz-*' -type f \
  -print -quit 2>/dev/null || true)
: >"$t/empty"
head -c 100000 /dev/urandom >"$t/random"
refused "missing kernel" 1 --kernel "$t/nowhere"
refused "kernel is a folder" 1 --kernel "$t"
refused "empty kernel" 1 --kernel "$t/empty"
refused "random kernel" 1 --kernel "$t/random"
if [[ -n $kernel ]]; then
  for size in 3 600 4096 1000000; do
    head -c "$size" "$kernel" >"$t/truncated"
    refused "kernel truncated to $size bytes" 1 --kernel "$t/truncated"
  done
  refused "missing initrd" 1 --kernel "$kernel" --initrd "$t/nowhere"
  refused "empty initrd" 1 --kernel "$kernel" --initrd "$t/empty"
  truncate -s 900M "$t/huge"
  refused "initrd larger than memory" 1 --kernel "$kernel" --initrd "$t/huge" --memory 256M
  rm -f "$t/huge"
  # A RAM disk of noise is for the kernel to judge: it panics for want of an init, and we say so by exit code 72.
  code=0
  limited 120 "$ring3" run --quiet --kernel "$kernel" --initrd "$t/random" </dev/null >"$t/out" 2>"$err" || code=$?
  judge "random initrd: the kernel panics" "$code" 72
  refused "a command with another initrd" 2 --kernel "$kernel" --initrd "$t/random" -- true
else
  skip "truncated kernels, initrds" "no Debian kernel at hand"
fi
code=0
env -u RING3_CACHE HOME="$t" XDG_CACHE_HOME="$t" "$ring3" run --quiet </dev/null >/dev/null 2>"$err" || code=$?
if compgen -G '/boot/vmlinuz-*' >/dev/null; then
  skip "no kernel at hand" "there is one in /boot"
else
  judge "no kernel at hand" "$code" 1 error
fi

# --- options ---
multiboot "$t/halt" '\xfa\xf4\xeb\xfd' # cli; hlt; jmp to the hlt
for memory in 0 1K 99999T 18446744073709551616 abc '' -1; do
  refused "--memory '$memory'" 2 --kernel "$t/halt" --memory="$memory"
done
for engine in '' tcg JIT; do refused "--engine '$engine'" 2 --kernel "$t/halt" --engine="$engine"; done
for cpus in 0 1025 99999999999 abc '' -1; do refused "--cpus '$cpus'" 2 --kernel "$t/halt" --cpus="$cpus"; done
for cpu in unheard-of max,+unheard-of max,-unheard-of max,sse ','; do
  refused "--cpu '$cpu'" 2 --kernel "$t/halt" --cpu "$cpu"
done
refused "unknown option" 2 --unheard-of
refused "command for a kernel that is not Linux" 2 --kernel "$t/halt" -- true

# --- guests that misbehave ---
# lidt [0x100030]; int3. The descriptor table there has limit 0.
multiboot "$t/triple" '\x0f\x01\x1d\x30\x00\x10\x00\xcc\0\0\0\0\0\0\0\0\0\0\0\0\0\0'
refused "triple fault" 70 --kernel "$t/triple"

# ends_by NAME SIGNAL CODE KERNEL [OPTIONS]: SIGNAL after a second ends it with CODE, silently.
ends_by() {
  local name=$1 signal=$2 want=$3 image=$4 code=0
  shift 4
  env --default-signal=INT,TERM timeout --foreground --preserve-status --signal="$signal" --kill-after="$limit" 1 \
    "$ring3" run --quiet --kernel "$image" "$@" </dev/null >"$t/out" 2>"$err" || code=$?
  judge "$name" "$code" "$want"
}
multiboot "$t/spin" '\xfa\xeb\xfe'                             # cli; jmp .
multiboot "$t/talk" '\x66\xba\xf8\x03\xb0\x78\xee\xeb\xfd'     # writes x to COM1 for ever
multiboot "$t/fault" '\x8b\x05\x00\x00\x00\xf0\xeb\xf8'        # reads memory that is not there for ever
for signal in INT TERM; do
  want=$([[ $signal == INT ]] && echo 130 || echo 143)
  ends_by "spins with interrupts off, SIG$signal" "$signal" "$want" "$t/spin"
  ends_by "spins on two CPUs' machine, SIG$signal" "$signal" "$want" "$t/spin" --cpus 2
  ends_by "halts for ever, SIG$signal" "$signal" "$want" "$t/halt"
  ends_by "floods the console, SIG$signal" "$signal" "$want" "$t/talk"
  ends_by "reads a hole for ever, SIG$signal" "$signal" "$want" "$t/fault"
done
if [[ -n $kernel ]]; then
  ends_by "Linux while it boots, SIGINT" INT 130 "$kernel" --cpus 2
  ends_by "Linux while it boots, SIGTERM" TERM 143 "$kernel"
fi

# --- output that goes nowhere ---
for target in closed full reader-gone; do
  code=0
  case $target in
    closed) limited "$limit" "$ring3" run --quiet --kernel "$t/talk" </dev/null 2>"$err" >&- || code=$? ;;
    full) limited "$limit" "$ring3" run --quiet --kernel "$t/talk" </dev/null 2>"$err" >/dev/full || code=$? ;;
    reader-gone)
      {
        limited "$limit" "$ring3" run --quiet --kernel "$t/talk" </dev/null 2>"$err" || code=$?
        echo "$code" >"$t/code"
      } | head -c 1 >/dev/null || true
      code=$(<"$t/code")
      ;;
  esac
  judge "standard output: $target" "$code" 1 error
done
code=0
limited "$limit" "$ring3" run --quiet --kernel "$t/triple" <&- >&- 2>&- || code=$?
: >"$err"
judge "all three descriptors closed" "$code" 70

# --- ./run ---
: >"$t/file"
code=0
RING3_CACHE=$t/file/cache limited 120 "$root/run" -- true </dev/null >/dev/null 2>"$t/run-err" || code=$?
grep -E '^(ring3: error|fix): ' "$t/run-err" >"$err" || true
judge "./run with a cache folder that cannot be" "$code" 1 error

mkdir "$t/bin"
cat >"$t/bin/df" <<'EOF'
#!/bin/sh
echo "Filesystem 1M-blocks Used Available Capacity Mounted"
echo "/dev/sda1 100 97 3 97% /"
EOF
chmod +x "$t/bin/df"
code=0
PATH=$t/bin:$PATH RING3_CACHE=$t/cache limited 120 "$root/run" -- true </dev/null >/dev/null 2>"$t/run-err" || code=$?
grep -E '^(ring3: error|fix): ' "$t/run-err" >"$err" || true
judge "./run with a full disk" "$code" 1 error

finish_checks
