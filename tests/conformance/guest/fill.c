// SPDX-License-Identifier: Apache-2.0
// Runs in the guest: writes memory as fast as it can, and checks in each round what the last one wrote.
// fill MEBIBYTES SECONDS
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static uint64_t pattern(uint64_t round, size_t word) { return round * 0x9e3779b97f4a7c15ULL ^ word; }

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  const size_t words = ((size_t)atol(argv[1]) << 20) / sizeof(uint64_t);
  const time_t end = time(NULL) + atol(argv[2]);
  uint64_t *p = mmap(NULL, words * sizeof *p, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return 2;
  puts("FILL-START");
  fflush(stdout);
  uint64_t round = 0;
  for (; time(NULL) < end; ++round) {
    for (size_t i = 0; i < words; i += 8) {
      if (round != 0 && p[i] != pattern(round - 1, i)) {
        printf("FILL-LOST round %lu word %zu\n", (unsigned long)round, i);
        return 1;
      }
      p[i] = pattern(round, i);
    }
  }
  printf("FILL-KEPT %lu rounds\n", (unsigned long)round);
  return 0;
}
