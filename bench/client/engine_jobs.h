// SPDX-License-Identifier: Apache-2.0
// The files that the jobs of bench/engine work on.
#pragma once
namespace bench {

// Makes text, rows.sql and unit.c in the current folder, the same each time.
void make_inputs();

} // namespace bench
