#include "bench/plots.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <map>

namespace sft {
namespace {

constexpr double kWidth = 1040;
constexpr size_t kHues = 10;  // .h0 ... .h9 of the page; .h10 is for the others

template <class... Args>
void put(std::string& out, fmt::format_string<Args...> format, Args&&... args) {
  fmt::format_to(std::back_inserter(out), format, std::forward<Args>(args)...);
}

std::string begin_svg(double height, std::string_view label) {
  return fmt::format("<svg viewBox=\"0 0 {:.0f} {:.0f}\" role=\"img\" aria-label=\"{}\">\n", kWidth,
                     height, label);
}

std::string row_title(const KernelRow& row, const Ceilings& ceilings) {
  const double t = row.seconds.median;
  return fmt::format("{}\n{} ({} to {}), {:.0f} calls\n{}, {}\n{:.0f} % of the roofline", row.name,
                     duration(t), duration(row.seconds.min), duration(row.seconds.max), row.calls,
                     with_unit(row.flops / t, "FLOP/s"), with_unit(row.bytes / t, "B/s"),
                     100 * floor_of(row, ceilings).seconds / t);
}

std::vector<const KernelRow*> slowest_first(const Report& report) {
  std::vector<const KernelRow*> rows;
  for (const KernelRow& row : report.kernels)
    if (row.seconds.median > 0) rows.push_back(&row);
  std::stable_sort(rows.begin(), rows.end(), [](const KernelRow* a, const KernelRow* b) {
    return a->seconds.median > b->seconds.median;
  });
  return rows;
}

// ---- roofline

// A logarithmic axis from value range to pixels.
struct Axis {
  double low, high, from, to;  // of log10; pixels
  double operator()(double value) const {
    return from + (std::log10(value) - low) / (high - low) * (to - from);
  }
};

struct Box {
  double x0, y0, x1, y1;
  bool meets(const Box& other) const {
    return x0 < other.x1 && other.x0 < x1 && y0 < other.y1 && other.y0 < y1;
  }
};

class Roofline {
 public:
  explicit Roofline(const Report& report)
      : report_(report),
        peak_(report.ceilings.arithmetic()),
        bandwidth_(report.ceilings.bandwidth()) {
    for (const KernelRow* row : slowest_first(report))
      if (row->flops > 0 && row->bytes > 0) rows_.push_back(row);
    double left = peak_ / bandwidth_ / 30, right = peak_ / bandwidth_ * 30, lowest = peak_ / 1e3;
    for (const KernelRow* row : rows_) {
      left = std::min(left, intensity(*row) / 2), right = std::max(right, intensity(*row) * 2);
      lowest = std::min(lowest, rate(*row) / 2);
      longest_ = std::max(longest_, row->seconds.median);
    }
    x_ = {std::log10(left), std::log10(right), kLeft, kWidth - kRight};
    y_ = {std::log10(lowest), std::log10(peak_ * 2), kHeight - kBottom, kTop};
  }

  std::string draw() {
    out_ = begin_svg(kHeight, "Roofline: arithmetic rate over intensity");
    grid();
    roof();
    points();
    names();
    return out_ + "</svg>\n";
  }

 private:
  static constexpr double kHeight = 560, kLeft = 86, kRight = 20, kTop = 16, kBottom = 54;

  static double intensity(const KernelRow& row) { return row.flops / row.bytes; }
  static double rate(const KernelRow& row) { return row.flops / row.seconds.median; }
  double radius(const KernelRow& row) const {
    return 4 + 15 * std::sqrt(row.seconds.median / longest_);
  }

  void grid() {
    for (int e = static_cast<int>(std::ceil(x_.low)); e <= x_.high; ++e) {
      const double x = x_(std::pow(10.0, e));
      put(out_, "<path class=\"grid\" d=\"M{:.1f} {}V{}\"/>", x, kTop, kHeight - kBottom);
      put(out_, "<text class=\"tick\" x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{:g}</text>\n",
          x, kHeight - kBottom + 20, std::pow(10.0, e));
    }
    for (int e = static_cast<int>(std::ceil(y_.low)); e <= y_.high; ++e) {
      const double y = y_(std::pow(10.0, e));
      put(out_, "<path class=\"grid\" d=\"M{} {:.1f}H{}\"/>", kLeft, y, kWidth - kRight);
      put(out_, "<text class=\"tick\" x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n",
          kLeft - 8, y + 4, with_unit(std::pow(10.0, e), "FLOP/s"));
    }
    put(out_,
        "<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">FLOP per byte</text>\n",
        (kLeft + kWidth - kRight) / 2, kHeight - 10);
  }

  void roof() {
    const double left = std::pow(10.0, x_.low), ridge = peak_ / bandwidth_;
    const double first = std::max(left, std::pow(10.0, y_.low) / bandwidth_), bottom = y_.from;
    const std::string line = fmt::format("M{:.1f} {:.1f}L{:.1f} {:.1f}H{:.1f}", x_(first),
                                         y_(first * bandwidth_), x_(ridge), y_(peak_), x_.to);
    put(out_, "<path class=\"under\" d=\"{}V{:.1f}H{:.1f}Z\"/><path class=\"roof\" d=\"{}\"/>\n",
        line, bottom, x_(first), line);
    // where the roof begins: what computes most lies farther to the right
    put(out_, "<text class=\"limit\" x=\"{:.1f}\" y=\"{:.1f}\">arithmetic {}</text>\n",
        x_(ridge) + 4, y_(peak_) - 8, with_unit(peak_, "FLOP/s"));
    taken_.push_back({x_(ridge), y_(peak_) - 22, x_(ridge) + 180, y_(peak_) + 2});
    const double middle = std::sqrt(first * ridge), x = x_(middle), y = y_(middle * bandwidth_);
    const double slope = std::atan2(y_(peak_) - y, x_(ridge) - x) * 180 / M_PI;
    put(out_,
        "<text class=\"limit\" text-anchor=\"middle\" transform=\"translate({:.1f} {:.1f}) "
        "rotate({:.1f})\" dy=\"-9\">memory {}</text>\n",
        x, y, slope, with_unit(bandwidth_, "B/s"));
    taken_.push_back({x - 60, y - 50, x + 60, y + 30});
  }

  void points() {
    for (const KernelRow* row : rows_) {
      const double x = x_(intensity(*row)), y = y_(rate(*row)), r = radius(*row);
      put(out_,
          "<circle class=\"point b{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.1f}\"><title>{}</title>"
          "</circle>\n",
          floor_of(*row, report_.ceilings).bound, x, y, r,
          escaped(row_title(*row, report_.ceilings)));
      taken_.push_back({x - r / 2, y - r / 2, x + r / 2, y + r / 2});
    }
  }

  // The slowest first, each beside its point where nothing else stands; else not at all.
  void names() {
    for (const KernelRow* row : rows_) {
      const std::string name = row->name.substr(0, row->name.find('['));
      const bool back = row->name.ends_with(" backward");
      const std::string text = name + (back ? " backward" : "");
      const double x = x_(intensity(*row)), y = y_(rate(*row)), r = radius(*row) + 4;
      const double width = 6.4 * static_cast<double>(text.size());
      for (const auto& [left, base] : {std::pair{x + r, y + 4},
                                       {x - r - width, y + 4},
                                       {x - width / 2, y - r - 3},
                                       {x - width / 2, y + r + 11}}) {
        const Box box{left, base - 11, left + width, base + 3};
        if (box.x0 < kLeft || box.x1 > x_.to || meets(box)) continue;
        put(out_, "<text class=\"name\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", left, base,
            escaped(text));
        taken_.push_back(box);
        break;
      }
    }
  }

  bool meets(const Box& box) const {
    return std::any_of(taken_.begin(), taken_.end(), [&](const Box& b) { return b.meets(box); });
  }

  const Report& report_;
  double peak_, bandwidth_, longest_ = 0;
  std::vector<const KernelRow*> rows_;
  Axis x_{}, y_{};
  std::vector<Box> taken_;
  std::string out_;
};

// ---- hues of ops

// linear and linear.backward are one thing to the eye.
std::string family(std::string_view name) {
  return std::string(name.substr(0, name.find(".backward")));
}

// The families that take most time get a hue each.
class Hues {
 public:
  explicit Hues(const Report& report) {
    std::map<std::string, double> seconds;
    for (const PhaseTime& phase : report.phases)
      for (const auto& [name, time] : phase.ops) seconds[family(name)] += time;
    for (const auto& [name, time] : seconds) order_.push_back(name);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](const auto& a, const auto& b) { return seconds.at(a) > seconds.at(b); });
  }
  size_t of(std::string_view name) const {
    const auto found = std::find(order_.begin(), order_.end(), family(name));
    return std::min<size_t>(found - order_.begin(), kHues);
  }
  const std::vector<std::string>& order() const { return order_; }

 private:
  std::vector<std::string> order_;
};

// ---- bars

constexpr double kBarHeight = 22, kBarsTo = kWidth - 170;

// One row; `from`: where the bar begins. scale: the bar's length.
void bar(std::string& out, size_t i, const KernelRow& row, const Report& report, double from,
         double scale) {
  const Floor floor = floor_of(row, report.ceilings);
  const double y = kBarHeight * static_cast<double>(i), t = row.seconds.median;
  const double all = (kBarsTo - from) * scale, needed = all * std::min(1.0, floor.seconds / t);
  put(out,
      "<g><title>{}</title><text class=\"name\" x=\"{}\" y=\"{:.0f}\" "
      "text-anchor=\"end\">{}</text>",
      escaped(row_title(row, report.ceilings)), from - 10, y + 15, escaped(row.name));
  put(out, "<rect class=\"spent\" x=\"{}\" y=\"{:.0f}\" width=\"{:.1f}\" height=\"15\" rx=\"2\"/>",
      from, y + 3, all);
  put(out, "<rect class=\"b{}\" x=\"{}\" y=\"{:.0f}\" width=\"{:.1f}\" height=\"15\" rx=\"2\"/>",
      floor.bound, from, y + 3, needed);
  put(out, "<text class=\"tick\" x=\"{:.1f}\" y=\"{:.0f}\">{} · {:.0f} %</text></g>\n",
      from + all + 8, y + 15, duration(t), 100 * floor.seconds / t);
}

// ---- time line

void phase_ops(std::string& out, const PhaseTime& phase, const Hues& hues, double left,
               double per_second) {
  for (const auto& [name, seconds] : phase.ops) {
    const double width = seconds * per_second;
    put(out,
        "<rect class=\"h{}{}\" x=\"{:.2f}\" y=\"34\" width=\"{:.2f}\" height=\"64\"><title>{}\n{} "
        "of "
        "{}</title></rect>",
        hues.of(name), name.find(".backward") == std::string::npos ? "" : " back", left,
        std::max(width - 0.6, 0.2), escaped(name), duration(seconds), escaped(phase.name));
    left += width;
  }
  out += "\n";
}

void legend(std::string& out, const Hues& hues) {
  double x = 0, y = 150;
  const size_t shown = std::min(hues.order().size(), kHues + 1);
  for (size_t i = 0; i < shown; ++i) {
    const std::string name = i < kHues ? hues.order()[i] : "others";
    const double width = 34 + 7.2 * static_cast<double>(name.size());
    if (x + width > kWidth) x = 0, y += 22;
    put(out,
        "<rect class=\"h{}\" x=\"{:.1f}\" y=\"{:.0f}\" width=\"13\" height=\"13\" rx=\"3\"/>"
        "<text class=\"name\" x=\"{:.1f}\" y=\"{:.0f}\">{}</text>\n",
        i, x, y - 11, x + 19, y, escaped(name));
    x += width;
  }
}

}  // namespace

std::string roofline_plot(const Report& report) { return Roofline(report).draw(); }

std::string bar_plot(const Report& report) {
  const std::vector<const KernelRow*> rows = slowest_first(report);
  if (rows.empty()) return "";
  std::string out = begin_svg(kBarHeight * static_cast<double>(rows.size()) + 6,
                              "Time and share of the roofline of each kernel");
  size_t longest = 0;
  for (const KernelRow* row : rows) longest = std::max(longest, row->name.size());
  const double from = std::min(20 + 6.4 * static_cast<double>(longest), 420.0);
  for (size_t i = 0; i < rows.size(); ++i)
    bar(out, i, *rows[i], report, from,
        report.model ? rows[i]->seconds.median / rows[0]->seconds.median : 1);
  return out + "</svg>\n";
}

std::string time_line(const Report& report) {
  double seconds = 0;
  for (const PhaseTime& phase : report.phases) seconds += phase.seconds;
  if (seconds <= 0) return "";
  const Hues hues(report);
  const double per_second = kWidth / seconds;
  std::string out = begin_svg(184, "One step from left to right");
  double left = 0;
  for (const PhaseTime& phase : report.phases) {
    const double width = phase.seconds * per_second;
    put(out, "<rect class=\"phase\" x=\"{:.1f}\" y=\"30\" width=\"{:.1f}\" height=\"72\"/>", left,
        std::max(width - 1, 0.5));
    phase_ops(out, phase, hues, left, per_second);
    if (width > 7 * static_cast<double>(phase.name.size()))
      put(out, "<text class=\"limit\" x=\"{:.1f}\" y=\"20\">{}</text>", left, escaped(phase.name));
    if (width > 60)
      put(out, "<text class=\"tick\" x=\"{:.1f}\" y=\"120\">{}</text>\n", left,
          duration(phase.seconds));
    left += width;
  }
  legend(out, hues);
  return out + "</svg>\n";
}

std::string escaped(std::string_view text) {
  std::string out;
  for (char c : text) {
    const std::string_view special = c == '&'   ? "&amp;"
                                     : c == '<' ? "&lt;"
                                     : c == '>' ? "&gt;"
                                     : c == '"' ? "&quot;"
                                                : "";
    special.empty() ? out += c : out += special;
  }
  return out;
}

std::string with_unit(double value, std::string_view unit) {
  constexpr std::array kPrefixes{"", "k", "M", "G", "T", "P"};
  size_t i = 0;
  for (; value >= 999.5 && i + 1 < kPrefixes.size(); ++i) value /= 1000;
  return fmt::format("{:.3g} {}{}", value, kPrefixes[i], unit);
}

std::string duration(double seconds) {
  if (seconds >= 1) return fmt::format("{:.3g} s", seconds);
  if (seconds >= 1e-3) return fmt::format("{:.3g} ms", seconds * 1e3);
  return fmt::format("{:.3g} us", seconds * 1e6);
}

}  // namespace sft
