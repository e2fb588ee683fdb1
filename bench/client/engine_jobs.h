// SPDX-License-Identifier: Apache-2.0
// The files that the jobs of bench/engine work on.
#pragma once
namespace bench {

// Makes text, rows.sql and unit.c in the current folder, the same each time; of a size that is one `part`th
// of what bench/engine uses. `part` is at least 1.
void make_inputs(unsigned part);

} // namespace bench
