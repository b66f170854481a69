// A report as one page to look at: self-contained HTML, plots as inline SVG, no scripts; follows
// the reader's light or dark preference.
#pragma once

#include <string>

#include "bench/report.h"

namespace sft {

std::string report_html(const Report& report);

}  // namespace sft
