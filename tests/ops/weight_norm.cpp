#include "engine/ops/weight_norm.h"

#include <cmath>

#include "autograd/functions.h"
#include "engine/cuda/runtime.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

std::vector<Array> oracle(std::span<const Array> in, const Case&) {
  const Array &g = in[0], &v = in[1];
  const int64_t K = v.shape.back(), rows = v.shape.count() / K;
  Array w = v;
  for (int64_t j = 0; j < K; ++j) {
    double square = 0;
    for (int64_t r = 0; r < rows; ++r) square += v.data[r * K + j] * v.data[r * K + j];
    for (int64_t r = 0; r < rows; ++r) w.data[r * K + j] *= g.data[j] / std::sqrt(square);
  }
  return {w};
}

// dims: C, C / G, K.
const RegisterOp weight_norm_op(OpSpec{
    .name = "weight_norm",
    .cases = {{.dims = {2, 1, 1}},  // of one row dv is 0, and rounding is all there is to compare
              {.dims = {7, 3, 33}},
              {.dims = {40, 16, 5}},
              {.dims = {768, 48, 128}, .bench = true}},
    .inputs =
        [](const Case& c, Fill& fill) {
          return std::vector<Array>{fill.normal({1, 1, c.dims[2]}),
                                    fill.normal({c.dims[0], c.dims[1], c.dims[2]})};
        },
    .oracle = oracle,
    .run = [](Tape& t, std::span<const Var> in, const Case&) -> std::vector<Var> {
      return {weight_norm(t, in[0], in[1])};
    },
    .cost =
        [](const Case& c) {
          return Cost{.bytes = 12.0 * c.dims[0] * c.dims[1] * c.dims[2],
                      .flops = 3.0 * c.dims[0] * c.dims[1] * c.dims[2]};
        },
    .cuda = true,
    .terms = 640,
    .roundings = 0,  // g, v and w are parameters: f32
    .gradient_roundings = 0,
    .packs = false,
});

}  // namespace

TEST_CASE("weight_norm: on a device, of parameters, made again when a change is announced") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  OpRun run(/*poison=*/false, 0, 0, {Device::cuda, Math::exact});
  Fill fill(7);
  Tape tape(run.ctx);
  const Array first{.shape = {2}, .data = {1, 3}}, second{.shape = {2}, .data = {2, 3}};
  const std::vector<Var> in =
      run.place(tape, std::vector<Array>{first, fill.normal({6, 2, 2}), second});
  const Tensor g = in[0], v = in[1];
  for (const Tensor& parameter : {g, v})
    run.prepared.add_parameters(parameter.data, parameter.bytes());
  const Tensor w = weight_norm_forward(run.ctx, g, v);
  const std::vector<double> before = OpRun::read(w).data;
  int made = 0;
  const auto count = [&](float*) { ++made; };
  derived(run.ctx, w.data, fnv1a("test"), 1, count);
  EXPECT(weight_norm_forward(run.ctx, g, v).data == w.data);
  derived(run.ctx, w.data, fnv1a("test"), 1, count);
  EXPECT(made == 1);

  run.ctx.gpu->copy(g.data, in[2].value.data, g.bytes());
  run.prepared.weights_changed(g.data, g.bytes());
  EXPECT(weight_norm_forward(run.ctx, g, v).data == w.data);
  const std::vector<double> after = OpRun::read(w).data;
  for (size_t i = 0; i < after.size(); ++i) EXPECT(after[i] == before[i] * (i % 2 ? 1 : 2));
  derived(run.ctx, w.data, fnv1a("test"), 1, count);
  EXPECT(made == 2);
}

TEST_CASE("weight_norm: of parameters, kept until g or v changes") {
  OpRun run(/*poison=*/false);
  Fill fill(7);
  Tape tape(run.ctx);
  const std::vector<Array> arrays{fill.normal({5}), fill.normal({6, 2, 5})};
  const std::vector<Var> in = run.place(tape, arrays);
  const Tensor g = in[0], v = in[1];
  for (const Tensor& parameter : {g, v})
    run.prepared.add_parameters(parameter.data, parameter.bytes());
  const Tensor w = weight_norm_forward(run.ctx, g, v);
  EXPECT(run.prepared.owns(w.data));
  const float before = w.f32()[0];
  EXPECT(weight_norm_forward(run.ctx, g, v).data == w.data);
  EXPECT(w.f32()[0] == before);

  SUBCASE("g alone; what was made of the weight is made again too") {
    int made = 0;
    const auto count = [&](float* out) { *out = static_cast<float>(++made); };
    derived(run.ctx, w.data, fnv1a("test"), 1, count);
    g.f32()[0] *= 2;
    weight_norm_forward(run.ctx, g, v);
    EXPECT(w.f32()[0] == 2 * before);
    derived(run.ctx, w.data, fnv1a("test"), 1, count);
    EXPECT(made == 2);
  }
  SUBCASE("v") {
    for (int64_t i = 0; i < v.count(); ++i) v.f32()[i] += 1;
    run.prepared.weights_changed(v.data, v.bytes());
    weight_norm_forward(run.ctx, g, v);
    EXPECT(w.f32()[0] != before);
  }
}

}  // namespace sft
