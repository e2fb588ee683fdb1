# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by bench/engine and tests/guest/lockstep_jobs.sh: the programs that the jobs run, and the RAM disk with them.
# Uses die(), $scratch and what is in guest.sh.

# The Debian package that brings the program NAME.
package_of() {
  case $1 in
    gzip) echo gzip ;;
    xz) echo xz-utils ;;
    awk) echo mawk ;;
    sqlite3) echo sqlite3 ;;
    gcc) echo gcc ;;
    *) echo coreutils ;;
  esac
}

# The files of PROGRAM without their libraries, a line each; fails if there is none. Where the program of the jobs looks
# (engine_jobs.cpp) is where this looks.
files_of() {
  local file helper
  file=$(PATH=/usr/bin:/bin type -P -- "$1") || return 1
  printf '%s\n' "$file"
  [[ $1 == gcc ]] || return 0
  helper=$("$file" -print-prog-name=cc1)
  [[ -x $helper ]] && printf '%s\n' "$helper" || return 1
  PATH=/usr/bin:/bin type -P as
}

# drop_missing_jobs: takes jobs out of $scratch/names (KIND NAME CPUS) whose program is not installed.
drop_missing_jobs() {
  local name program
  while read -r name; do
    program=${name%-[0-9]*}
    files_of "$program" >/dev/null && continue
    echo "$name is left out: $program is not installed (apt-get install $(package_of "$program"))" >>"$scratch/left-out"
    awk -v name="$name" '!($1 == "job" && $2 == name)' "$scratch/names" >"$scratch/names.new"
    mv -- "$scratch/names.new" "$scratch/names"
  done < <(awk '$1 == "job" { print $2 }' "${scratch:?}/names")
}

# make_job_files PROGRAM [N]: the input files (N times smaller) in $scratch/files, and in $scratch/root with the programs
# of the jobs in $scratch/names.
make_job_files() {
  local name files
  mkdir -p "$scratch/files" "$scratch/root/dev" "$scratch/root/jobs"
  "$1" --prepare "$scratch/files" "${2-1}" || die "cannot make the jobs' files" "free some space in ${TMPDIR:-/tmp}"
  cp -- "$scratch"/files/* "$scratch/root/jobs/"
  while read -r name; do
    mapfile -t files < <(files_of "${name%-[0-9]*}")
    put_into_root "${files[@]}"
  done < <(awk '$1 == "job" { print $2 }' "$scratch/names")
}
