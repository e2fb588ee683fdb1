# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by bench/boot, bench/engine and the guest tests that bring their own RAM disk: boots a Linux guest with
# QEMU's TCG and with ring3. Uses die(), $scratch.

ring3=${RING3:-${root:?}/build/bin/ring3}
qemu=${QEMU:-qemu-system-x86_64}
cache=${RING3_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/ring3}
kernel='' cpus=1 memory=512M limit=600
initrd=''        # default: $scratch/initrd
launcher=()      # a command that runs what boots a guest
ring3_options=() # of ring3 run, besides those below

find_qemu() { command -v "$qemu" >/dev/null || die "$qemu is not installed" "apt-get install qemu-system-x86"; }

# find_guest: checks that ring3 is there, and sets $kernel, if it is empty, and $busybox.
find_guest() {
  local candidate
  [[ -x $ring3 ]] || die "$ring3 is not there" "./run --build-only"
  if [[ -z $kernel ]]; then
    kernel=$(find "$cache/kernel" /boot -maxdepth 1 -name 'vmlinuz-*' 2>/dev/null | sort -V | tail -n 1)
    [[ -n $kernel ]] || die "no kernel at hand" "./run fetches one; or give --kernel FILE"
  fi
  [[ -r $kernel ]] || die "cannot read the kernel $kernel" "give another --kernel FILE"
  busybox=''
  for candidate in "$cache/busybox" /usr/bin/busybox /bin/busybox; do
    if [[ -x $candidate ]]; then
      busybox=$candidate
      break
    fi
  done
  [[ -n $busybox ]] || die "no busybox at hand" "apt-get install busybox-static"
}

# put_into_root FILE...: with the libraries that ldd names, where they are here.
put_into_root() {
  local file library
  for file in "$@"; do
    [[ -e ${scratch:?}/root/$file ]] || install -D -m 755 -- "$file" "$scratch/root/$file"
    # "NAME => FILE (ADDRESS)" and, for the loader, "FILE (ADDRESS)". A static program has none.
    while read -r library; do
      [[ -e $scratch/root/$library ]] || install -D -m 755 -- "$library" "$scratch/root/$library"
    done < <(ldd "$file" 2>/dev/null | awk '{ for (i = 1; i <= NF; ++i) if ($i ~ /^\//) { print $i; break } }')
  done
}

# make_initrd: $initrd of what is in $scratch/root.
make_initrd() {
  initrd=${initrd:-${scratch:?}/initrd}
  (cd "$scratch/root" && find . | "$busybox" cpio -o -H newc >"$initrd" 2>/dev/null) ||
    die "this busybox has no cpio" "apt-get install busybox-static"
}

# with_qemu APPEND, with_ring3 APPEND: boots; the guest's output goes to $scratch/out, the other to $scratch/err.
with_qemu() {
  ${launcher[@]+"${launcher[@]}"} timeout --signal=KILL "$limit" "$qemu" -accel tcg -cpu max -smp "$cpus" -m "$memory" -nodefaults -no-user-config \
    -display none -serial stdio -no-reboot -kernel "$kernel" -initrd "$initrd" -append "$1" \
    </dev/null >"$scratch/out" 2>"$scratch/err"
}
with_ring3() {
  ${launcher[@]+"${launcher[@]}"} timeout --signal=KILL "$limit" "$ring3" run --quiet --stats --cpus "$cpus" \
    --memory "$memory" --kernel "$kernel" --initrd "$initrd" --append "$1" ${ring3_options[@]+"${ring3_options[@]}"} \
    </dev/null >"$scratch/out" 2>"$scratch/err"
}
