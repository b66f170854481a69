#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "bench/files.h"
#include "bench/model.h"
#include "bench/ops.h"
#include "bench/page.h"
#include "bench/peers.h"
#include "build_info.h"
#include "engine/cpu/isa.h"
#include "engine/io/file.h"
#include "models/checkpoint.h"
#include "tests/doctest.h"
#include "tests/golden.h"
#include "tests/op_spec.h"
#include "tests/run_program.h"
#include "tests/temporary_folder.h"
#include "train/corpus.h"

using namespace sft;
using test::Outcome;
using test::run_program;

namespace {

bool absent() {
  if (!test::program_path("sft-bench").empty()) return false;
  test::skip("sft-bench was not built");
  return true;
}

nlohmann::json report_of(std::vector<std::string> arguments) {
  arguments.insert(arguments.end(), {"--json", "-q"});
  const Outcome o = run_program("sft-bench", arguments);
  EXPECT_MESSAGE(o.code == 0, o.err);
  return nlohmann::json::parse(o.out);
}

// Each tag that is opened is closed, in turn; attributes are quoted; nothing comes from elsewhere.
std::string fault_of_page(const std::string& page) {
  std::vector<std::string> open;
  for (size_t at = page.find('<'); at != std::string::npos; at = page.find('<', at + 1)) {
    const size_t end = page.find('>', at);
    if (end == std::string::npos) return "a tag that does not end";
    const std::string tag = page.substr(at + 1, end - at - 1);
    const std::string name = tag.substr(0, tag.find_first_of(" \n"));
    if (tag.find('<') != std::string::npos) return "< within <" + tag;
    if (std::count(tag.begin(), tag.end(), '"') % 2) return "quotes of <" + tag;
    if (name == "script" || name == "link" || name == "img") return "<" + tag;
    if (name == "!DOCTYPE" || tag.ends_with('/')) continue;
    if (name[0] != '/') {
      open.push_back(name);
    } else if (open.empty() || "/" + open.back() != name) {
      return "<" + tag + "> in " + (open.empty() ? "nothing" : open.back());
    } else {
      open.pop_back();
    }
  }
  return open.empty() ? "" : "open at the end: " + open.back();
}

Report sample_report() {
  Report report{.command = "model",
                .ceilings = {.fma_one = 5e10, .fma_all = 1e11, .read = 2e10, .copy = 1e10}};
  report.kernels = {{"linear", 12, {1e-3, 9e-4, 2e-3, 5}, 5e7, 1e6},
                    {"odd <&\" name", 1, {2e-3, 1e-3, 3e-3, 5}, 0, 1e7}};
  report.model = ModelResult{.id = "extract/x/fixed:1/1/all",
                             .audio_seconds = 2,
                             .step = {0.5, 0.4, 0.8, 5},
                             .profiled_step = 0.5};
  report.phases = {{"encoder", 0.4, {{"linear", 0.1}, {"linear.backward", 0.2}}}};
  return report;
}

PeerRow peer(const char* name, const std::string& device, double per_second) {
  return {.peer = name,
          .version = "v1",
          .config = "sdpa",
          .device = device,
          .workload = "extract/x/fixed:1/1/all",
          .math = "exact",
          .per_second = per_second};
}

}  // namespace

TEST_CASE("sft-bench: a page is well-formed, and shows everything that was measured") {
  const std::string page = report_html(sample_report());
  EXPECT(fault_of_page(page) == "");
  for (const char* shown :
       {"odd &lt;&amp;&quot; name", "linear.backward", "extract/x/fixed:1/1/all", "100 GFLOP/s",
        "10 GB/s", "prefers-color-scheme:dark"})
    EXPECT_MESSAGE(page.find(shown) != std::string::npos, shown);
  EXPECT(fault_of_page("<p><b></p></b>") != "");
  Report bare{.command = "ceilings", .ceilings = sample_report().ceilings};
  EXPECT(fault_of_page(report_html(bare)) == "");
}

TEST_CASE("sft-bench: peers of the same work, device and class, the fastest first") {
  Report report = sample_report();
  const std::string here = machine_name(report);
  std::vector<PeerRow> rows{peer("slow", here, 1), peer("fast", here, 2), peer("far", "TPU", 9),
                            peer("other work", here, 9), peer("bf16", here, 9)};
  rows[0].paired = 3.5;
  rows[0].kernels = {{"linear", 4e-3}, {"none", 1}}, rows[1].kernels = {{"linear", 3e-3}};
  rows[3].workload = "extract/y/fixed:1/1/all", rows[4].math = "bf16";
  const std::vector<std::string> remarks = add_peers(report, rows);
  REQUIRE(report.peers.size() == 2);
  EXPECT(report.peers[0].name == "fast (v1, sdpa)");
  EXPECT(report.kernels[0].peer == 3e-3);
  EXPECT(report.kernels[1].peer == 0);
  REQUIRE(remarks.size() == 1);
  EXPECT(remarks[0].find("peers on TPU are left out") == 0);
  const std::string text = report_text(report);  // 4 audio-seconds a second
  for (const char* line :
       {"  ~2.00x of fast (v1, sdpa): 2.00 audio-seconds/s\n",
        "  ~4.00x of slow (v1, sdpa): 1.00 audio-seconds/s; measured in turn with it 3.50x\n",
        " ~3.00x\n"})
    EXPECT_MESSAGE(text.find(line) != std::string::npos, text);
  rows[0].ours = "fast16";  // in turn with other products than these
  Report other = sample_report();
  add_peers(other, rows);
  EXPECT(report_text(other).find("measured in turn") == std::string::npos);
  rows[0].ours = "exact";
  other = sample_report();
  add_peers(other, rows);
  EXPECT(report_text(other).find("measured in turn with it 3.50x") != std::string::npos);
  const auto json = nlohmann::json::parse(report_json(report));
  EXPECT(json.at("peers")[0].at("ratio") == 2.0);
  EXPECT(json.at("kernels")[0].at("peer_us") == 3000.0);
}

TEST_CASE("sft-bench: a file of peers, and files that are none") {
  const test::TemporaryFolder folder;
  const nlohmann::json row{{"peer", "pytorch"},
                           {"version", "torch 2"},
                           {"device", "x"},
                           {"workload_id", "w"},
                           {"class", "exact"},
                           {"config", "sdpa"},
                           {"as_per_s", {{"median", 2}}},
                           {"pairs", {{1, 2}, {1, 4}, {1, 3}}}};
  nlohmann::json ours = row;
  ours["peer"] = "sft";
  nlohmann::json second = row, failed = row;
  second["peer"] = "sft bf16", failed["failed"] = "exit code 6";
  write_text(folder / "list.json", nlohmann::json{row, ours, second, failed}.dump());
  write_text(folder / "runs.json", nlohmann::json{{"runs", {{row}, {ours, row}}}}.dump());
  const std::vector<PeerRow> list = read_peers(folder / "list.json");
  REQUIRE(list.size() == 1);
  EXPECT(list[0].paired == 3);
  EXPECT(list[0].per_second == 2);
  EXPECT(read_peers(folder / "runs.json").size() == 2);
  for (const char* wrong :
       {"", "{}", "[{}]", "[1]", "{\"runs\": 3}", "[{\"peer\": \"p\", \"class\": 3}]"}) {
    write_text(folder / "wrong.json", wrong, Existing::replace);
    EXPECT_MESSAGE(test::error_of([&] { read_peers(folder / "wrong.json"); }).kind == Kind::input,
                   wrong);
  }
}

TEST_CASE("sft-bench on cuda: ceilings") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  const DeviceCeilings c = measure_device(shared_gpu(), Math::bf16, {96, 1 << 16, 0.02});
  for (double rate : {c.bf16, c.f32, c.copy}) EXPECT(rate > 0);
  const Ceilings all{.fma_all = 1, .copy = 2, .device = c};
  EXPECT(all.arithmetic() == c.bf16);
  EXPECT(all.bandwidth() == c.copy);
}

TEST_CASE("sft-bench on cuda: an op, over several copies of its inputs") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  const auto found = std::find_if(op_specs().begin(), op_specs().end(),
                                  [](const OpSpec& s) { return s.name == "layer_norm"; });
  OpSpec spec = *found;
  spec.name = "small layer norm", spec.cases = {{.frames = {3, 1}, .dims = {48}, .bench = true}};
  std::set<const void*> read;
  spec.run = [&read, run = found->run](Tape& t, std::span<const Var> x, const Case& c) {
    read.insert(x[0].value.data);
    return run(t, x, c);
  };
  op_specs().push_back(spec);
  for (Math math : {Math::exact, Math::bf16}) {
    read.clear();
    const auto rows = bench_ops({.op = "small layer norm",
                                 .repeats = 2,
                                 .where = {Device::cuda, math},
                                 .region_seconds = 1e-4,
                                 .rotated_bytes = 20'000},
                                [](auto, auto) {});
    REQUIRE(rows.size() == 2);
    EXPECT(read.size() >= 4);
    for (const KernelRow& row : rows) {
      EXPECT(row.seconds.median > 0);
      EXPECT(row.seconds.n == 2);
      EXPECT(row.bytes > 0);
      EXPECT(row.calls == 1);
    }
  }
  op_specs().pop_back();
}

TEST_CASE("sft-bench on cuda: a model extracts and trains") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  const Config config = open_model(test::golden("models/hubert-group")).config;
  for (const auto& [task, head, phases] :
       {std::tuple{"extract", "all",
                   std::vector<std::string>{"samples", "convolutions", "encoder"}},
        {"train-full",
         "linear+cached",
         {"convolutions", "encoder", "head and loss", "backward", "update"}}}) {
    const ModelBenchResult done =
        bench_model(config,
                    complete({.task = task,
                              .mix = "fixed:1",
                              .batch = 1,
                              .head = head,
                              .repeats = 1,
                              .gpu = &shared_gpu(),
                              .launches = true}),
                    [](int64_t step, int64_t steps) { EXPECT((step <= steps && steps == 2)); });
    EXPECT(done.result.frames == 49);
    EXPECT(done.result.step.median > 0);
    EXPECT(done.result.profiled_step > 0);
    EXPECT(done.result.planned_bytes > 0);
    std::vector<std::string> names;
    for (const PhaseTime& phase : done.phases) names.push_back(phase.name);
    EXPECT(names == phases);
    EXPECT(std::any_of(done.kernels.begin(), done.kernels.end(),
                       [](const KernelRow& row) { return row.name == "attention"; }));
    std::map<std::string, double> of_ops;
    bool product = false;
    for (const LaunchRow& row : done.launches) {
      EXPECT(row.calls > 0);
      EXPECT(!row.name.empty());
      of_ops[row.op] += row.seconds, product |= row.name == "product";
    }
    EXPECT(product);
    for (const KernelRow& row : done.kernels)  // one step, so the medians are its times
      EXPECT_MESSAGE(of_ops[row.name] <= row.seconds.median, row.name);
    EXPECT(of_ops.size() == done.kernels.size());
  }
}

TEST_CASE("sft-bench: without a device, --device cuda says what is missing") {
  if (absent()) return;
  const std::vector<std::vector<std::string>> commands{
      {"ceilings"}, {"ops", "--op", "layer_norm"}, {"model", "hubert-tiny", "--mix", "fixed:1"}};
  for (std::vector<std::string> command : commands) {
    command.insert(command.end(), {"--device", "cuda", "--json", "-q"});
    const Outcome o = run_program("sft-bench", command);
    if (o.code == 0) return test::skip("there is a device");
    EXPECT(o.code == 4);
    EXPECT(o.out.empty());
    EXPECT_MESSAGE((o.err.find("no driver on this machine") != std::string::npos ||
                    o.err.find("no device") != std::string::npos ||
                    o.err.find("built without CUDA") != std::string::npos),
                   o.err);
  }
}

TEST_CASE("gpu_check: where nothing can be checked it says so and exits with 77") {
  if (std::system("python3 -c '' 2>/dev/null")) return test::skip("python3 is missing");
  const test::TemporaryFolder folder;
  const std::string command = std::string(SFT_TESTS_DIR) + "/gpu_check/run --build '" +
                              (folder / "none") + "' --out '" + (folder / "out") + "' > '" +
                              (folder / "said") + "'";
  const int status = std::system(command.c_str());
  EXPECT((WIFEXITED(status) && WEXITSTATUS(status) == 77));
  const std::string said = read_text(folder / "said");
  EXPECT_MESSAGE(said.find("nothing was checked") != std::string::npos, said);
  EXPECT(std::count(said.begin(), said.end(), '\n') == 1);
}

TEST_CASE("sft-bench: --html writes a page, once") {
  if (absent()) return;
  const test::TemporaryFolder folder;
  const std::string page = folder / "page.html";
  std::vector<std::string> command{"model",   "hubert-tiny", "--task", "train-head", "--mix",
                                   "fixed:1", "--repeats",   "1",      "--html",     page};
  EXPECT(run_program("sft-bench", command).code == 0);
  const std::string first = read_text(page);
  EXPECT(fault_of_page(first) == "");
  for (const char* shown : {"lstm.backward", "head and loss", "Roofline"})
    EXPECT_MESSAGE(first.find(shown) != std::string::npos, shown);
  const Outcome again = run_program("sft-bench", command);
  EXPECT(again.code == 2);
  EXPECT(again.err.find("--force") != std::string::npos);
  EXPECT(read_text(page) == first);
  command.push_back("--force");
  EXPECT(run_program("sft-bench", command).code == 0);
}

TEST_CASE("sft-bench: ceilings and an op, forward and backward") {
  if (absent()) return;
  const auto report = report_of({"ops", "--op", "layer_norm", "--repeats", "2"});
  for (const char* rate : {"fma_one", "fma_all", "read", "copy"})
    EXPECT(report.at("ceilings").at(rate).get<double>() > 0);
  const auto& kernels = report.at("kernels");
  REQUIRE(kernels.size() == 4);  // layer_norm_plain too
  EXPECT(kernels[0].at("name") == "layer_norm[3x2415; 768]");
  EXPECT(kernels[1].at("name") == "layer_norm[3x2415; 768] backward");
  for (const auto& kernel : kernels) {
    EXPECT(kernel.at("bytes").get<double>() >= 8.0 * 2415 * 768);
    EXPECT(kernel.at("us").get<double>() > 0);
  }
}

TEST_CASE("sft-bench: a model extracts and trains; its memory is within the plan") {
  if (absent()) return;
  const auto extract = report_of({"model", "hubert-tiny", "--mix", "fixed:1", "--repeats", "2"});
  EXPECT(extract.at("workload").at("id") == "extract/hubert-tiny/fixed:1/1/all");
  EXPECT(extract.at("result").at("as_per_s").at("median").get<double>() > 0);
  const auto train = report_of({"model", "hubert-tiny", "--task", "train-full", "--mix", "mixed",
                                "--batch", "2", "--head", "linear+cached", "--repeats", "2"});
  EXPECT(train.at("workload").at("id") == "train-full/hubert-tiny/mixed/2/linear+cached");
  EXPECT(train.at("workload").at("audio_s") == 8);
  std::set<std::string> names;
  for (const auto& kernel : train.at("kernels")) names.insert(kernel.at("name"));
  for (const char* name : {"ctc", "ffn.backward", "attention.backward", "adam", "grad_norm"})
    EXPECT_MESSAGE(names.count(name), name);
  EXPECT(names.count("conv_stem") == 0);  // kept
  const auto& result = train.at("result");
  EXPECT(result.at("as_per_s").at("median").get<double>() *
             result.at("step_ms").at("median").get<double>() ==
         doctest::Approx(8e3));
  double in_kernels = 0;  // microseconds
  for (const auto& kernel : train.at("kernels")) in_kernels += kernel.at("us").get<double>();
  EXPECT(in_kernels > 0);
  EXPECT(in_kernels <= 1e3 * result.at("step_ms").at("max").get<double>());
  // the program itself takes some; a small model hardly more
  EXPECT(train.at("result").at("mem_bytes").get<double>() <
         1.1 * train.at("result").at("planned_bytes").get<double>() + 64e6);
}

TEST_CASE("sft-bench: tiles, moments and numerics are in the report") {
  if (absent()) return;
  const auto model = report_of({"model", "hubert-tiny", "--mix", "fixed:1", "--repeats", "2"});
  const auto& ceilings = model.at("ceilings");
  EXPECT(ceilings.at("f32_tile_all").get<double>() > 0);
  for (const char* rate : {"fma", "tile", "tile_busy"}) {
    EXPECT(ceilings.at("moments").at(rate).at("n") == 3);  // before, between, behind
    EXPECT(ceilings.at("moments").at(rate).at("median").get<double>() > 0);
  }
  EXPECT(ceilings.at("fma_all") >= ceilings.at("moments").at("fma").at("max"));
  EXPECT(model.at("numerics").at("pass") == true);
  const auto ops = report_of({"ops", "--op", "gelu", "--repeats", "1"});
  EXPECT(ops.at("numerics").at("pass") == true);
  EXPECT(ops.at("numerics").at("tol") == 1);
}

// Ours fails at one of two workloads: the other one is measured, and the file says why.
TEST_CASE("run.py: a side that fails is a row that says so, and the run goes on") {
  if (std::system("python3 -c '' 2>/dev/null")) return test::skip("python3 is missing");
  const test::TemporaryFolder folder;
  write_text(folder / "numpy.py", "");  // only the workloads of corpora compute with it
  write_text(folder / "ours",
             "case $1 in fixed:5) echo '{\"result\": {\"as_per_s\": {\"median\": 2}}}';;\n"
             "*) echo 'sft-bench: error: the numbers are wrong' >&2; exit 6;; esac\n");
  const std::string script = std::string(SFT_TESTS_DIR) + "/../bench/baseline";
  const std::string python =
      "PYTHONDONTWRITEBYTECODE=1 PYTHONPATH='" + folder.path() + ":" + script + "' python3 ";
  const std::string said = " > '" + (folder / "said") + "' 2> '" + (folder / "complaints") + "'";
  const int status = std::system((python + script + "/run.py --out '" + (folder / "out.json") +
                                  "' --cache '" + (folder / "cache") +
                                  "' --only extract/hubert-base/fixed --repeats 2 --peers none" +
                                  " --sft-bench \"sh '" + (folder / "ours") + "' {mix}\"" + said)
                                     .c_str());
  EXPECT((WIFEXITED(status) && WEXITSTATUS(status) == 1));
  EXPECT(read_text(folder / "complaints").find("error: the numbers are wrong") !=
         std::string::npos);
  EXPECT(read_text(folder / "said").find("failed: exit code 6: sft-bench: error: the numbers") !=
         std::string::npos);
  const auto rows = nlohmann::json::parse(read_text(folder / "out.json"));
  REQUIRE(rows.size() == 2);
  EXPECT(rows[0].at("as_per_s").at("median") == 2);
  EXPECT(rows[1].at("failed") == "exit code 6: sft-bench: error: the numbers are wrong");
  EXPECT(!rows[1].contains("seconds"));
}

// Two sides that do nothing, in one class with our fast16 before bf16.
TEST_CASE("run.py: a pair says which of our arithmetics it was measured with") {
  if (std::system("python3 -c '' 2>/dev/null")) return test::skip("python3 is missing");
  const test::TemporaryFolder folder;
  write_text(folder / "numpy.py", "");
  write_text(folder / "pairs.py",
             "import collections, sys, run\n"
             "sys.argv = 'run.py --out - --cache - --math fast16,bf16 --repeats 1'.split()\n"
             "class Side:\n"
             "    config = ''\n"
             "    def __call__(self, workload): return 1.0\n"
             "sides = {('bf16', name): Side() for name in ('sft', 'sft bf16', 'pytorch')}\n"
             "rows = run.measure('extract/x/fixed:1/1/all', sides, run.options())\n"
             "print([row.get('ours') for row in rows])\n");
  const std::string command = "PYTHONDONTWRITEBYTECODE=1 PYTHONPATH='" + folder.path() + ":" +
                              SFT_TESTS_DIR + "/../bench/baseline' python3 '" +
                              (folder / "pairs.py") + "' > '" + (folder / "said") + "'";
  EXPECT(std::system(command.c_str()) == 0);
  EXPECT(read_text(folder / "said") == "[None, None, 'fast16']\n");
}

TEST_CASE("sft-bench numerics: JSON, and what cannot be compared") {
  if (absent()) return;
  const std::string speech = find_corpus("digits");
  const std::string flac = speech.substr(0, speech.rfind('/')) + "/george/c_george_test_002.flac";
  const auto json = report_of({"numerics", "hubert-tiny", flac, "--states", "0,4", "--exact"});
  EXPECT(json.at("model") == "hubert-tiny");
  EXPECT(json.at("states") == nlohmann::json::array({0, 4}));
  REQUIRE(json.at("errors").at("exact").size() == 2);
  EXPECT(json.at("errors").at("exact")[1].get<double>() < 5e-5);

  const test::TemporaryFolder folder;
  std::string wav(
      "RIFF\x7c\x02\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0data"
      "\x58\2\0\0",
      44);
  write_text(folder / "short.wav", wav + std::string(600, '\1'));
  const Outcome brief =
      run_program("sft-bench", {"numerics", "hubert-tiny", folder / "short.wav", "--exact"});
  EXPECT(brief.code == 3);
  EXPECT_MESSAGE(brief.err.find("short.wav: 300 samples at 16 kHz (expected at least 400)") !=
                     std::string::npos,
                 brief.err);

  const std::string isa(cpu::isa());
  setenv("SFT_ISA", "avx2", 1);
  const Outcome none = run_program("sft-bench", {"numerics", "hubert-tiny", flac});
  setenv("SFT_ISA", isa.c_str(), 1);
  EXPECT(none.code == 4);
  EXPECT(none.out.empty());
  EXPECT_MESSAGE(none.err.find("need AVX-512 with VNNI and BF16") != std::string::npos, none.err);
}

TEST_CASE("sft-bench: a folder of merge that is there already") {
  if (absent()) return;
  const test::TemporaryFolder folder;
  const std::string made = folder / fmt::format("sft-bench-merge.{}", getpid());
  std::filesystem::create_directory(made);
  const Error e =
      test::error_of([&] { bench_merge(preset("hubert-tiny"), folder.path(), "x", 1, 0); });
  EXPECT(e.kind == Kind::resource);
  EXPECT(e.message == made + ": cannot be made (it is there already)");
}

TEST_CASE("sft-bench: decoding, merging, and states in 16 bits") {
  if (absent()) return;
  const test::TemporaryFolder folder;
  const auto io = report_of({"io", "digits", "--repeats", "1"}).at("io");
  EXPECT(io.at("files") == 165);
  EXPECT(io.at("audio_s").get<double>() == doctest::Approx(464.9).epsilon(1e-3));
  const auto merge = report_of(
      {"model", "hubert-tiny", "--task", "merge", "--repeats", "2", "--folder", folder.path()});
  REQUIRE(merge.at("kernels").size() == 1);
  EXPECT(merge.at("kernels")[0].at("name") == "merge/hubert-tiny/-/2/all");
  EXPECT(merge.at("kernels")[0].at("bytes").get<double>() > 3 * 4 * 900'000);
  EXPECT(std::filesystem::is_empty(folder.path()));
  const std::string speech = find_corpus("digits");
  const std::string flac = speech.substr(0, speech.rfind('/')) + "/george/c_george_test_002.flac";
  const Outcome o =
      run_program("sft-bench", {"numerics", "hubert-tiny", flac, "--states", "4", "--exact"});
  EXPECT_MESSAGE(o.code == 0, o.err);
  EXPECT(o.out.find("hubert-tiny\texact\t4\t") == 0);
  EXPECT(run_program("sft-bench", {"io", folder / "none.tsv"}).code == 3);
}

TEST_CASE("sft-bench: head only leaves the encoder without a backward") {
  if (absent()) return;
  const auto train = report_of(
      {"model", "hubert-tiny", "--task", "train-head", "--mix", "fixed:1", "--repeats", "1"});
  std::set<std::string> names;
  for (const auto& kernel : train.at("kernels")) names.insert(kernel.at("name"));
  EXPECT(names.count("lstm.backward") == 1);
  EXPECT(names.count("attention.backward") == 0);
}

TEST_CASE("sft-bench: a probe reads kept states; its encoder does not run again") {
  if (absent()) return;
  for (const auto& [task, loss] : {std::pair{"probe:pr", "ctc"}, {"probe:er", "cross_entropy"}}) {
    const auto report = report_of({"model", "hubert-tiny", "--task", task, "--mix", "kw",
                                   "--batch-as", "3", "--repeats", "1"});
    EXPECT(report["workload"]["id"] == fmt::format("{}/hubert-tiny/kw/3/all", task));
    std::set<std::string> names;
    for (const auto& kernel : report["kernels"]) names.insert(kernel["name"]);
    for (const char* name : {"states", "weighted_sum.backward", loss, "adam"})
      EXPECT_MESSAGE(names.contains(name), name);
    EXPECT(!names.contains("attention"));
  }
}

TEST_CASE("sft-bench: compare finds what became slower") {
  if (absent()) return;
  const test::TemporaryFolder folder;
  const std::string before = folder / "a.json", after = folder / "b.json";
  const auto write = [](const std::string& path, double us, const char* name) {
    std::ofstream(path) << nlohmann::json{{"schema", 1},
                                          {"command", "ops"},
                                          {"host", {{"cpu", "x"}, {"threads", 2}}},
                                          {"kernels", {{{"name", name}, {"us", us}}}}};
  };
  write(before, 100, "linear"), write(after, 104, "linear");
  const Outcome same = run_program("sft-bench", {"compare", before, after, "--fail-over", "5%"});
  EXPECT(same.code == 0);
  EXPECT(same.out == "linear\t100.0\t104.0\t+4.0 %\n");
  write(after, 106, "linear");
  EXPECT(run_program("sft-bench", {"compare", before, after}).code == 0);
  const Outcome slower = run_program("sft-bench", {"compare", before, after, "--fail-over", "5%"});
  EXPECT(slower.code == 6);
  EXPECT(slower.err.find("slower by more than 5%") != std::string::npos);
  write(after, 50, "ffn");
  EXPECT(run_program("sft-bench", {"compare", before, after, "--fail-over", "5"}).code == 6);
  std::ofstream(after) << nlohmann::json{{"schema", 1},
                                         {"command", "ops"},
                                         {"host", {{"cpu", "x"}, {"threads", 2}}},
                                         {"numerics", {{"class", "fast16"}}},
                                         {"kernels", nlohmann::json::array()}};
  const Outcome other = run_program("sft-bench", {"compare", before, after});
  EXPECT(other.code == 2);
  EXPECT_MESSAGE(other.err.find("b.json of ops in fast16") != std::string::npos, other.err);
  std::ofstream(after) << "{}";
  EXPECT(run_program("sft-bench", {"compare", before, after}).code == 3);
}

TEST_CASE("sft-bench: exit codes and messages") {
  if (absent()) return;
  const auto refused = [](std::vector<std::string> arguments, const std::string& what) {
    const Outcome o = run_program("sft-bench", arguments);
    EXPECT(o.code == 2);
    EXPECT_MESSAGE(o.err.find(what) != std::string::npos, o.err);
    EXPECT(o.out.empty());
  };
  refused({"opps"}, "did you mean ops?");
  refused({"ops", "--op", "nothing"}, "no op has such a name");
  refused({"ops", "--repeats", "0"}, "expected at least 1");
  refused({"model", "hubert-tiny", "--mix", "fixed:x"}, "expected fixed:SECONDS, mixed, ");
  refused({"model", "hubert-tiny", "--head", "lstm", "--task", "train-full"}, "expected linear");
  refused({"model", "hubert-tiny", "--mix", "fixed:600", "--batch", "3000"},
          "--batch 3000: expected at most 223");
  refused({"ops", "--device", "cuda", "--math", "fast16"}, "--math fast16 is of the CPU");
  EXPECT(run_program("sft-bench", {"ops", "--peers", "/nowhere/peers.json"}).code == 3);
  refused({"ops", "--shape", "4x10"}, "--shape: of which op?");
  refused({"ops", "--op", "layer_norm", "--shape", "0x10:3"}, "expected FRAMES or FRAMES:DIMS");
  refused({"ops", "--op", "layer_norm", "--shape", "4x10:3,4"}, "sizes beside its frames, as in");
  refused({"model", "hubert-tiny", "--task", "probe:none"}, "there is no such task");
  refused({"ops", "--op", "attention", "--shape", "4x10:12,7"}, "head width is 7");
  refused({"model", "hubert-tiny", "--mix", "official:mixed"}, "expected fixed:SECONDS, mixed, ");
  refused({"model", "hubert-tiny", "--mix", "official:ted3", "--batch", "4"},
          "--batch 4: expected 16, a group of the recipe");
  refused({"model", "hubert-tiny", "--batch", "2", "--batch-as", "9"}, "are asked for already");
  for (std::vector<std::string> option : {std::vector<std::string>{"--mix", "fixed:1"},
                                          {"--batch", "3"},
                                          {"--batch-as", "9"},
                                          {"--head", "linear"},
                                          {"--bytes"},
                                          {"--launches"},
                                          {"--device", "cuda"},
                                          {"--math", "fast16"}}) {
    const std::string what = option[0] + ": --task merge has no such option";
    option.insert(option.begin(), {"model", "hubert-tiny", "--task", "merge"});
    refused(option, what);
  }
  refused({"model", "hubert-tiny", "--folder", "."}, "--folder: is of --task merge");
  refused({"compare", "a", "b", "--fail-over", "few"}, "expected a percentage");
}
