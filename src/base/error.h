// SPDX-License-Identifier: Apache-2.0
// The typed error that crosses module edges: what went wrong and what the user can do about it.
#pragma once

#include <expected>
#include <string>
#include <utility>

namespace ring3 {

struct Error {
  std::string message; // one line, no trailing full stop
  std::string fix;     // one line that says what to do; may be empty
  int exit_code = 1;   // what the command line tool exits with
};

template <class T> using Result = std::expected<T, Error>;

inline std::unexpected<Error> fail(std::string message, std::string fix = {}, int exit_code = 1) {
  return std::unexpected(Error{std::move(message), std::move(fix), exit_code});
}

} // namespace ring3
