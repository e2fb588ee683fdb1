// SPDX-License-Identifier: Apache-2.0
#include "engine_base.h"
#include "engine_jobs.h"
#include <algorithm>
#include <string>
#include <vector>

namespace bench {

namespace {

void write_file(const char* name, const std::string& content) {
  std::FILE* const f = std::fopen(name, "w");
  if (f == nullptr) fail(name);
  if (std::fwrite(content.data(), 1, content.size(), f) != content.size() || std::fclose(f) != 0) fail(name);
}

// Lines of words with numbers between them. Some words are much more frequent than others, so that it
// compresses about as well as prose.
std::string text(std::size_t size) {
  constexpr std::size_t words = 4096;
  Random random;
  std::vector<std::string> vocabulary(words);
  for (std::string& word : vocabulary) {
    const std::size_t length = 2 + random() % 9;
    for (std::size_t i = 0; i < length; ++i)
      word += static_cast<char>('a' + random() % 26 * (random() % 26) / 25);
  }
  std::string out;
  out.reserve(size + 64);
  while (out.size() < size) {
    const std::size_t line = 4 + random() % 12;
    for (std::size_t i = 0; i < line; ++i) {
      if (random() % 16 == 0) {
        out += std::to_string(random() % 10'000);
      } else {
        out += vocabulary[std::min({random() % words, random() % words, random() % words, random() % words})];
      }
      out += i + 1 < line ? ' ' : '\n';
    }
  }
  return out;
}

std::string rows(unsigned count) {
  return R"(CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price INTEGER, class INTEGER);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < )" +
         std::to_string(count) + R"()
  INSERT INTO item SELECT i, printf('item-%06d', i * 7919 % 1000003), i * i % 10007, i % 97 FROM n;
COMMIT;
CREATE INDEX item_name ON item(name);
CREATE INDEX item_class ON item(class, price);
SELECT class, count(*), sum(price), min(name), max(name) FROM item GROUP BY class ORDER BY 3 DESC LIMIT 20;
SELECT count(*), sum(b.price) FROM item a JOIN item b ON b.name = printf('item-%06d', a.price * 7919 % 1000003)
  WHERE a.id <= )" +
         std::to_string(count / 3) + R"(;
UPDATE item SET price = price + length(name) WHERE class % 3 = 1;
SELECT sum(price), count(DISTINCT name), avg(length(name)) FROM item WHERE name LIKE '%7%';
DELETE FROM item WHERE price % 2 = 0;
SELECT count(*), sum(price) FROM item;
)";
}

// Functions with loops, a switch and calls of one another, without any header.
std::string unit(unsigned functions) {
  Random random;
  std::string out = "typedef unsigned int u32;\nstruct node { struct node* next; u32 key; u32 value[6]; };\n"
                    "static u32 table[256];\n";
  for (unsigned f = 0; f < functions; ++f) {
    const auto number = [&] { return std::to_string(random() % 1000 + 1) + "u"; };
    const std::string name = "f" + std::to_string(f);
    out += "u32 " + name + "(struct node* n, u32 a, u32 b) {\n  u32 sum = " + number() + ";\n";
    out += "  for (struct node* p = n; p; p = p->next) {\n    for (u32 i = 0; i < 6; ++i) sum = sum * " +
           number() + " + (p->value[i] ^ a);\n    switch (p->key % 8u) {\n";
    for (unsigned k = 0; k < 7; ++k) {
      out += "      case " + std::to_string(k) + ": sum += table[(b + " + number() + ") % 256u] >> " +
             std::to_string(k + 1) + "; p->value[" + std::to_string(k % 6) + "] = sum / " + number() +
             "; break;\n";
    }
    out += "      default: if (sum > a) b -= " + number() + "; else a ^= sum << 3;\n    }\n  }\n";
    if (f > 0)
      out += "  if (a > " + number() + ") sum += f" + std::to_string(random() % f) + "(n, a / 2u, b + " +
             number() + ");\n";
    out += "  table[sum % 256u] = sum;\n  return sum;\n}\n";
  }
  return out;
}

} // namespace

void make_inputs(unsigned part) {
  write_file("text", text((std::size_t{8} << 20) / part));
  write_file("rows.sql", rows(120'000 / part));
  write_file("unit.c", unit(std::max(20 / part, 1u)));
}

} // namespace bench
