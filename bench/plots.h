// The pictures of a report, each an <svg>. Colours and type are the page's (page.cpp).
#pragma once

#include <string>
#include <string_view>

#include "bench/report.h"

namespace sft {

// Every row that computes: FLOP/s over FLOP per byte, beneath the measured ceilings. The area of a
// point is its time; the largest are named.
std::string roofline_plot(const Report& report);
// Ops, the slowest first: how much of the roofline each reaches; of a model: how long each takes in
// a step, and how much of that the ceilings ask for.
std::string bar_plot(const Report& report);
// One step from left to right: its phases, and in each the ops by their share of it.
std::string time_line(const Report& report);

std::string escaped(std::string_view text);                  // for HTML
std::string with_unit(double value, std::string_view unit);  // 7.88e14, "FLOP/s" -> "788 TFLOP/s"
std::string duration(double seconds);                        // 0.0123 -> "12.3 ms"

}  // namespace sft
