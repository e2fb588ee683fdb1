# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by bench/memslots and bench/exits: runs a client of /dev/kvm with ring3 and with the kernel's own KVM.

ring3=${RING3:-${root:?}/build/bin/ring3}

die() {
  printf '%s: %s\nfix: %s\n' "${0##*/}" "$1" "$2" >&2
  exit "${3:-1}"
}

# prepare CLIENT: sets $client, $systems (ring3, and kernel where its device opens) and $scratch.
prepare() {
  [[ -x $ring3 ]] || die "$ring3 is not there" "./run --build-only"
  client=${BENCH_BIN:-$(dirname "$ring3")}/$1
  [[ -x $client ]] || die "$client is not there" "./run --build-only"
  systems=(ring3)
  # Opened, not looked at: permissions are only half of it.
  if { : <>/dev/kvm; } 2>/dev/null; then systems+=(kernel); fi
  scratch=$(mktemp -d "${TMPDIR:-/tmp}/ring3-bench.XXXXXX")
  trap 'rm -rf -- "$scratch"' EXIT
  : >"$scratch/all"
}

# run_client SYSTEM ARGUMENT...
run_client() {
  local system=$1
  shift
  if [[ $system == ring3 ]]; then
    timeout 600 "$ring3" exec --quiet -- "$client" "$@"
  else
    timeout 600 "$client" "$@"
  fi
}

# medians N: of the lines' last field, for each combination of the first N.
medians() {
  awk -v n="$1" '
    { key = $1; for (i = 2; i <= n; ++i) key = key " " $i; count[key]++; v[key, count[key]] = $(n + 1) }
    END {
      for (key in count) {
        c = count[key]
        for (i = 1; i <= c; ++i) a[i] = v[key, i] + 0
        for (i = 2; i <= c; ++i) { x = a[i]; for (j = i - 1; j >= 1 && a[j] > x; --j) a[j + 1] = a[j]; a[j + 1] = x }
        print key, (c % 2 ? a[(c + 1) / 2] : (a[c / 2] + a[c / 2 + 1]) / 2)
      }
    }'
}
