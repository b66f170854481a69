// The arithmetic behind what sft-bench prints, on made-up measurements.
#include "bench/report.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/doctest.h"

using namespace sft;

namespace {

const Ceilings kCeilings{
    .fma_one = 1e9,
    .fma_all = 2e9,
    .read = 5e9,
    .copy = 4e9,
    .f32_tile_all = 1.6e9,
    .moments = {{1e9, 0.5e9, 2e9, 4}, {0.8e9, 0.4e9, 1.6e9, 4}, {1e9, 0.5e9, 1e9, 4}}};

Report made_up() {
  const KernelRow kernel{"op", 2, {0.5, 0.25, 1, 3}, 0.8e9, 1e9};
  const ModelResult model{.id = "extract/m/mixed/2/all",
                          .batch = 2,
                          .audio_seconds = 10,
                          .frames = 499,
                          .step = {2, 1, 4, 3},
                          .profiled_step = 2,
                          .cpu_seconds = 1.6,
                          .unaccounted = 0.5,
                          .planned_bytes = 100 << 20,
                          .taken_bytes = 150 << 20};
  return {.command = "model",
          .ceilings = kCeilings,
          .kernels = {kernel},
          .model = model,
          .launches = {{"op", "norm_kernel<float>", 3, 0.5}}};
}

}  // namespace

TEST_CASE("bench: the spread of measurements") {
  const Spread odd = spread_of({3, 1, 2}), even = spread_of({4, 1, 2, 3.5});
  EXPECT(odd.median == 2);
  EXPECT(odd.min == 1);
  EXPECT(odd.max == 3);
  EXPECT(odd.n == 3);
  EXPECT(even.median == 2.75);
  EXPECT(even.n == 4);
  EXPECT(spread_of({}).n == 0);
}

TEST_CASE("bench: what the ceilings say a kernel needs") {
  const auto floor = [](double calls, double flops, double bytes) {
    return floor_of({"op", calls, {}, flops, bytes}, kCeilings);
  };
  EXPECT(floor(1, 4e9, 4e9).seconds == 2);
  EXPECT(floor(1, 4e9, 4e9).bound == 'C');
  EXPECT(floor(1, 4e9, 16e9).seconds == 4);
  EXPECT(floor(1, 4e9, 16e9).bound == 'M');
  EXPECT(floor(1, 8e4, 0).bound == 'C');   // 40 us in one call,
  EXPECT(floor(10, 8e4, 0).bound == 'L');  // in ten
}

TEST_CASE("bench: the table for people") {
  const std::string text = report_text(made_up());
  const auto says = [&](const std::string& part) {
    EXPECT_MESSAGE(text.find(part) != std::string::npos, part << " in\n" << text);
  };
  says("fp32 FMA 1 GF/s one thread, 2 all; f32 tile 2 all; memory read 5.0 GB/s, copy 4.0\n");
  says(
      "op         2   500000.0 (250000.0 - 1000000.0) 25.0 %    0.800  1000.00    1.6    2.0     C "
      " 80.0\n");
  says("norm_kernel<float> op     3   500000.0 25.0 %\n");
  says("unaccounted 500000.0 us (25.0 %)\n");
  says("5.00 audio-seconds/s (2.50 - 10.00), a step 2000.0 ms, 499 frames\n");
  says("0.8 GFLOP: 20.0 % of the arithmetic limit; 1600.0 ms of processor time: 50.0 % of it\n");
  says("memory: planned 100 MiB, resident 150 MiB (1.50 of the plan)\n");
  says("between the repetitions, median of 4 (min - max): FMA 1 (0 - 2) GF/s, tile 1 (0 - 2)\n");
  says(
      "  a step: 0 GF/s, 50.0 % of the median tile, 25.0 % of the best; a second of processor time "
      "0 GF, 50.0 % of the tile's 1\n");
  EXPECT(text.find("numerics") == std::string::npos);
}

TEST_CASE("bench: what was checked, and that it is wrong") {
  Report report{.command = "ops", .ceilings = kCeilings};
  report.numerics = Numerics{.error = 2e-6, .tolerance = 1e-5, .against = "last state, float64"};
  const auto says = [&](const std::string& line) {
    const std::string text = report_text(report);
    EXPECT_MESSAGE(text.find(line) != std::string::npos, text);
  };
  says("numerics: exact; last state, float64: off by 2e-06, allowed 1e-05: PASS\n");
  report.numerics->wrong = {"op: gradient 0"};
  says("allowed 1e-05: INVALID\nINVALID op: gradient 0\n");
  EXPECT(nlohmann::json::parse(report_json(report)).at("numerics").at("pass") == false);
  report.numerics->wrong.clear(), report.numerics->error = NAN;
  says("off by nan, allowed 1e-05: INVALID\n");
}

TEST_CASE("bench: what a layer moves, weights apart") {
  ModelResult model{.task = "train-full",
                    .frames = 10,
                    .layers = 2,
                    .width = 8,
                    .ffn = 32,
                    .trains_encoder = true};
  constexpr double kUnit = 10 * 8 * 2 * 4, kWeights = (4 * 8 + 2 * 32) * 8 * 2 * 4;
  const std::vector<KernelRow> kernels{{.name = "ffn", .bytes = kWeights + 6 * kUnit},
                                       {.name = "attention", .bytes = 4 * kUnit},
                                       {.name = "conv_strided", .bytes = 1e9},
                                       {.name = "ffn.backward", .bytes = 2 * kWeights + 9 * kUnit}};
  LayerBytes units = layer_bytes(model, kernels);
  EXPECT(units.forward == doctest::Approx(10));
  EXPECT(units.backward == doctest::Approx(9));
  Report report{.command = "model", .ceilings = kCeilings, .kernels = kernels, .model = model};
  const std::string line =
      "bytes of a layer without weights, in [frames, width]: forward 10.0 (budget 30)"
      ", backward 9.0 (56)\n";
  EXPECT(report_text(report).find(line) == std::string::npos);
  report.bytes = true;
  EXPECT_MESSAGE(report_text(report).find(line) != std::string::npos, report_text(report));
  model.trains_encoder = false;
  EXPECT(layer_bytes(model, kernels).backward == 0);
}

TEST_CASE("bench: decoding, for people and as JSON") {
  Report report{.command = "io", .ceilings = kCeilings};
  report.io = IoResult{.name = "m.tsv",
                       .files = 3,
                       .threads = 2,
                       .audio_seconds = 10,
                       .first_seconds = 2,
                       .pass = {0.5, 0.25, 1, 3},
                       .cpu_seconds = 0.75};
  const std::string text = report_text(report);
  EXPECT_MESSAGE(
      text.find(
          "io m.tsv: 3 files, 10.0 s of audio decoded by 2 threads in 0.500 s (0.250 - 1.000; "
          "the first time 2.000)\n  20 audio-seconds/s; 0.750 s of processor time\n") !=
          std::string::npos,
      text);
  EXPECT(nlohmann::json::parse(report_json(report)).at("io").at("as_per_s") == 20);
}

TEST_CASE("bench: the same as JSON") {
  const auto json = nlohmann::json::parse(report_json(made_up()));
  const auto& kernel = json.at("kernels").at(0);
  EXPECT(kernel.at("us") == 5e5);
  EXPECT(kernel.at("min") == 2.5e5);
  EXPECT(kernel.at("max") == 1e6);
  EXPECT(kernel.at("flop") == 0.8e9);
  EXPECT(kernel.at("bytes") == 1e9);
  EXPECT(kernel.at("floor_us") == 4e5);
  EXPECT(kernel.at("bound") == "C");
  EXPECT(json.at("launches").at(0) ==
         nlohmann::json{{"op", "op"}, {"name", "norm_kernel<float>"}, {"n", 3}, {"us", 5e5}});
  const auto& result = json.at("result");
  EXPECT(result.at("as_per_s").at("median") == 5);
  EXPECT(result.at("as_per_s").at("min") == 2.5);
  EXPECT(result.at("as_per_s").at("max") == 10);
  EXPECT(result.at("step_ms").at("median") == 2000);
  EXPECT(result.at("cpu_ms") == 1600);
  EXPECT(result.at("unaccounted_us") == 5e5);
  EXPECT(result.at("flop") == 0.8e9);
  EXPECT(result.at("planned_bytes") == 100 << 20);
  EXPECT(result.at("mem_bytes") == 150 << 20);
}
