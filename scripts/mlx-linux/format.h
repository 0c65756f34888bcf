// std::format for mlx-c 0.7 where the standard library has none (libstdc++ before GCC 13). Not a formatter: mlx-c's
// mlx/c/private/io.h uses no placeholder but "{}".
#pragma once
#if __has_include(<format>)
#include <format>
#else
#include <sstream>
#include <string>
#include <string_view>
namespace std {
inline void write_formatted(ostringstream& out, string_view pattern) { out << pattern; }

template <class First, class... Rest>
void write_formatted(ostringstream& out, string_view pattern, const First& first, const Rest&... rest) {
  const auto place = pattern.find("{}");
  if (place == string_view::npos) {
    out << pattern;
    return;
  }
  out << pattern.substr(0, place) << first;
  write_formatted(out, pattern.substr(place + 2), rest...);
}

template <class... Values>
string format(string_view pattern, const Values&... values) {
  ostringstream out;
  write_formatted(out, pattern, values...);
  return out.str();
}
} // namespace std
#endif
