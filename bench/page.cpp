#include "bench/page.h"

#include <fmt/chrono.h>

#include <ctime>
#include <iterator>

#include "bench/plots.h"
#include "build_info.h"

namespace sft {
namespace {

constexpr std::string_view kStyle = R"(
:root{color-scheme:light dark;--bg:#fcfcfa;--card:#fff;--fg:#1c2024;--soft:#667079;--line:#e3e5e2;
--spent:#e9ebe7;--C:#d9622b;--M:#14867b;--L:#8a93a3;--roof:#1c2024}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1b1f23;--fg:#e7e9ea;--soft:#98a2ab;
--line:#2c3237;--spent:#2b3136;--C:#f08a55;--M:#3cbcae;--L:#8e98a8;--roof:#e7e9ea}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:26px;margin:0}h2{font-size:18px;margin:0 0 2px}
p{margin:0 0 12px;color:var(--soft);max-width:76ch}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px;
margin-top:20px}
.tiles{display:flex;flex-wrap:wrap;gap:12px;margin-top:20px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 18px;
flex:1 1 150px}
.tile b{display:block;font-size:22px;font-weight:600;white-space:nowrap}
.tile span{color:var(--soft);font-size:13px}
svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}
svg text{fill:var(--fg)}svg .tick{fill:var(--soft)}svg .name{font-size:11.5px}
svg .name,svg .limit{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
svg .limit{font-weight:600;font-size:13px}
.grid{stroke:var(--line);fill:none}.roof{stroke:var(--roof);stroke-width:2;fill:none}
.under{fill:var(--roof);opacity:.045}.phase,.spent{fill:var(--spent)}
.bC{fill:var(--C)}.bM{fill:var(--M)}.bL{fill:var(--L)}
.point{fill-opacity:.75;stroke:var(--card);stroke-width:1.2}.point:hover{fill-opacity:1}
g:hover .spent{opacity:.6}
.h0{fill:#4e79a7}.h1{fill:#f28e2b}.h2{fill:#59a14f}.h3{fill:#e15759}.h4{fill:#b07aa1}
.h5{fill:#76b7b2}.h6{fill:#d4a72c}.h7{fill:#ff9da7}.h8{fill:#9c755f}.h9{fill:#6a7fdb}
.h10{fill:#9aa1a8}.back{opacity:.72}
.key{display:inline-block;width:11px;height:11px;border-radius:6px;margin:0 5px 0 14px}
.legend{white-space:nowrap}.keyC{background:var(--C)}.keyM{background:var(--M)}.keyL{background:var(--L)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:4px 8px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:500}
)";

constexpr std::string_view kBounds =
    "<span class=\"legend\"><span class=\"key keyC\"></span>arithmetic</span>"
    "<span class=\"legend\"><span class=\"key keyM\"></span>memory</span>"
    "<span class=\"legend\"><span class=\"key keyL\"></span>latency (less than 5 us a call either "
    "way)</span>";

template <class... Args>
void put(std::string& out, fmt::format_string<Args...> format, Args&&... args) {
  fmt::format_to(std::back_inserter(out), format, std::forward<Args>(args)...);
}

void tile(std::string& out, std::string_view what, const std::string& value) {
  put(out, "<div class=\"tile\"><b>{}</b><span>{}</span></div>\n", escaped(value), escaped(what));
}

std::string title(const Report& report) {
  return report.model ? report.model->id : "sft-bench " + report.command;
}

void tiles(std::string& out, const Report& report) {
  const Ceilings& c = report.ceilings;
  out += "<div class=\"tiles\">\n";
  if (report.model) {
    const ModelResult& m = *report.model;
    tile(out, "audio-seconds a second", fmt::format("{:.4g}", throughput(m).median));
    tile(out, fmt::format("a step: {:.0f} s of audio, {} frames", m.audio_seconds, m.frames),
         duration(m.step.median));
    tile(out, "memory taken", with_unit(static_cast<double>(m.taken_bytes), "B"));
    if (!report.peers.empty())
      tile(out, report.peers[0].name,
           fmt::format("~{:.2f}×", throughput(m).median / report.peers[0].per_second));
  }
  tile(out, c.device ? "of a large product" : "fp32 multiply-adds, all threads",
       with_unit(c.arithmetic(), "FLOP/s"));
  tile(out, "memory copied, read and written", with_unit(c.bandwidth(), "B/s"));
  out += "</div>\n";
}

void table(std::string& out, const Report& report) {
  out += "<section><h2>All figures</h2><div class=\"scroll\"><table><tr>";
  for (const char* head : {"kernel", "n", "median", "min", "max", "GFLOP", "MB", "arithmetic",
                           "memory", "bound", "of the roofline", "best peer"})
    put(out, "<th>{}</th>", head);
  out += "</tr>\n";
  for (const KernelRow& row : report.kernels) {
    const Floor floor = floor_of(row, report.ceilings);
    const double t = row.seconds.median;
    put(out,
        "<tr><td>{}</td><td>{:.0f}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.3f}</td>"
        "<td>{:.2f}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.1f} %</td><td>{}</td></tr>\n",
        escaped(row.name), row.calls, duration(t), duration(row.seconds.min),
        duration(row.seconds.max), row.flops / 1e9, row.bytes / 1e6,
        with_unit(row.flops / t, "FLOP/s"), with_unit(row.bytes / t, "B/s"), floor.bound,
        100 * floor.seconds / t, row.peer > 0 ? fmt::format("~{:.2f}×", row.peer / t) : "");
  }
  out += "</table></div></section>\n";
}

void section(std::string& out, std::string_view heading, const std::string& words,
             const std::string& plot) {
  if (!plot.empty())
    put(out, "<section><h2>{}</h2><p>{}</p>\n{}</section>\n", heading, words, plot);
}

std::string phases_in_words(const Report& report) {
  std::vector<std::string> phases;
  for (const PhaseTime& phase : report.phases)
    phases.push_back(escaped(phase.name) + " " + duration(phase.seconds));
  return fmt::format("In turn: {}.", fmt::join(phases, ", "));
}

void plots(std::string& out, const Report& report) {
  if (report.model)
    section(out, "The step, from left to right",
            "Each phase as long as it took, its ops by their share of it, paler on the way back; "
            "grey: between ops. Point at a block to read it. " +
                phases_in_words(report),
            time_line(report));
  section(out, "Roofline",
          fmt::format("How fast each kernel computes, over how much it computes per byte. The line "
                      "is what this machine reached in the same run. Larger points take longer. "
                      "Limited by{}",
                      kBounds),
          roofline_plot(report));
  section(out, report.model ? "Time of each op in the step" : "Share of the roofline",
          fmt::format("Coloured: the least that the ceilings allow. Grey: the rest of its time. "
                      "Limited by{}",
                      kBounds),
          bar_plot(report));
}

}  // namespace

std::string report_html(const Report& report) {
  std::string out = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>";
  put(out,
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"/>"
      "<title>{}</title>\n<style>{}</style></head><body><main>\n",
      escaped(title(report)), kStyle);
  put(out, "<h1>{}</h1><p>{} · {} · sft {} · {:%Y-%m-%d %H:%M} UTC</p>\n", escaped(title(report)),
      escaped(machine_name(report)), math_class(report.ceilings), SFT_VERSION,
      fmt::gmtime(std::time(nullptr)));
  tiles(out, report);
  plots(out, report);
  if (!report.kernels.empty()) table(out, report);
  return out + "</main></body></html>\n";
}

}  // namespace sft
