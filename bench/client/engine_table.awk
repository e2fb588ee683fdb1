# SPDX-License-Identifier: Apache-2.0
# The output of bench/engine. First file: KIND NAME CPUS, second: SYSTEM NAME MEDIAN.

function ratio(a, b, name) {
  return ((a, name) in m) && ((b, name) in m) && m[b, name] > 0 ? sprintf("%.2f", m[a, name] / m[b, name]) : ""
}
function cell(who, name) {
  if (!((who, name) in m)) return "-"
  return sprintf(m[who, name] < 10 ? "%.3f" : m[who, name] < 100 ? "%.2f" : "%.0f", m[who, name])
}
function row(name) {
  printf "%-18s%12s%12s%12s%12s%14s\n", name, cell("native", name), cell("tcg", name), cell("ring3", name),
    ratio("tcg", "ring3", name), ratio("ring3", "native", name)
}
function field(name, value) {
  if (value == "") return
  printf "%s\"%s\":%s", separator, name, value
  separator = ","
}
function object(name, unit,    i) {
  printf "%s\"%s\":{", between, name
  between = ","
  separator = ""
  for (i = 1; i <= systems; ++i) if ((system_[i], name) in m) field(system_[i] "_" unit, m[system_[i], name])
  field("tcg_to_ring3", ratio("tcg", "ring3", name))
  field("ring3_to_native", ratio("ring3", "native", name))
  printf "}"
}
# Objects of one kind.
function members(kind, label, unit,    j) {
  printf ",\"%s\":{", label
  between = ""
  for (j = 1; j <= count; ++j) if (kinds[j] == kind && (names[j] in measured)) object(names[j], unit)
  printf "}"
}
function section(kind, title,    j, begun) {
  for (j = 1; j <= count; ++j) {
    if (kinds[j] != kind || !(names[j] in measured)) continue
    if (!begun++) printf "%-18s%12s%12s%12s%12s%14s\n", title, "native", "tcg", "ring3", "tcg/ring3", "ring3/native"
    row(names[j])
  }
}

BEGIN { systems = split("native tcg ring3", system_, " ") }
FNR == NR { kinds[++count] = $1; names[count] = $2; next }
{ m[$1, $2] = $3; measured[$2] = 1 }
END {
  code = "boot-code"; instructions = "boot-instructions"; blocks = "boot-blocks"; time = "boot-translation"
  if (json == "true") {
    printf "{\"kernel\":\"%s\",\"runs\":%d,\"job_runs\":%d,\"machine_cpus\":%d", kernel, runs, job_runs,
      machine_cpus
    members("loop", "loops", "nanoseconds")
    members("job", "jobs", "seconds")
    members("boot", "boot", "seconds")
    if ("boot" in measured) {
      printf ",\"boot_figures\":{"
      separator = ""
      field("tcg_peak_mib", m["tcg", "boot-memory"])
      field("ring3_peak_mib", m["ring3", "boot-memory"])
      field("translated_blocks", m["ring3", blocks])
      field("translated_instructions", m["ring3", instructions])
      field("host_bytes", m["ring3", code])
      field("translation_microseconds", m["ring3", time])
      printf "}"
    }
    print "}"
    exit
  }
  print "kernel " kernel
  section("loop", "ns, median of " runs)
  section("job", "s, median of " job_runs)
  if ("sha256sum-2" in measured || "sha256sum-4" in measured)
    print "(this machine has " machine_cpus " CPUs)"
  section("boot", "s, median of " runs)
  if ("boot" in measured && m["ring3", instructions] > 0) {
    printf "%-18s%12s%12s%12s\n", "peak memory, MiB", "", cell("tcg", "boot-memory"), cell("ring3", "boot-memory")
    printf "ring3's boot: %d instructions in %d blocks translated to %.0f KiB (%.1f bytes each) in %.0f ms (%.0f ns each)\n",
      m["ring3", instructions], m["ring3", blocks], m["ring3", code] / 1024, m["ring3", code] / m["ring3", instructions],
      m["ring3", time] / 1000, m["ring3", time] * 1000 / m["ring3", instructions]
  }
}
