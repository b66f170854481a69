#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/attention.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include <cmath>

#include "engine/cpu/attention-inl.h"
#include "engine/cpu/attention_backward-inl.h"
#include "engine/ops/attention.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {
namespace {

// f of a Forward or Backward for heads of D numbers.
template <template <class, int64_t> class Work, class F>
auto with_work(Math math, int64_t D, Pieces& pieces, int64_t T, bool bias, F&& f) {
  const int64_t offsets = bias ? offsets_at_most(T) : 0;
#if HWY_TARGET == HWY_AVX3
  if (math == Math::fast16)
    return D <= 64 ? f(Work<Pairs, 64>(pieces, T, D, offsets))
                   : f(Work<Pairs, 128>(pieces, T, D, offsets));
#endif
  (void)math;
  return D <= 64 ? f(Work<Single, 64>(pieces, T, D, offsets))
                 : f(Work<Single, 128>(pieces, T, D, offsets));
}

int64_t forward_scratch(Math math, int64_t T, int64_t D, bool bias) {  // numbers
  Pieces pieces(nullptr);
  with_work<Forward>(math, D, pieces, T, bias, [](auto&&) {});
  return pieces.taken();
}

int64_t backward_scratch(Math math, int64_t T, int64_t D, bool bias) {
  Pieces pieces(nullptr);
  with_work<Backward>(math, D, pieces, T, bias, [](auto&&) {});
  return pieces.taken();
}

// Query rows [first, last) of one head.
void forward_rows(Math math, const AttentionHead& h, int64_t first, int64_t last, float* memory) {
  Pieces pieces(memory);
  with_work<Forward>(math, h.D, pieces, h.T, h.gate,
                     [&](auto&& work) { work.rows_of(h, first, last); });
}

void backward_head(Math math, const AttentionHead& h, const AttentionHeadGrads& g, float* memory) {
  Pieces pieces(memory);
  with_work<Backward>(math, h.D, pieces, h.T, h.gate, [&](auto&& work) { work.head(h, g); });
}

}  // namespace
}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <omp.h>

namespace sft {
namespace {

HWY_EXPORT(forward_scratch);
HWY_EXPORT(forward_rows);
HWY_EXPORT(backward_scratch);
HWY_EXPORT(backward_head);

constexpr int64_t kRows = 512;  // queries of a forward item; each packs the head's keys anew

struct Item {
  int32_t utterance, head;
  int64_t first, last;  // queries
};

// All (utterance, head, rows), longest utterances first.
std::span<Item> plan(Context& ctx, Segments segments, int heads, int64_t rows) {
  const int32_t B = segments.batch();
  int64_t count = 0;
  for (int b = 0; b < B; ++b) count += heads * ((segments.length(b) + rows - 1) / rows);
  auto* items = static_cast<Item*>(ctx.scratch.take(count * static_cast<int64_t>(sizeof(Item))));
  auto* order = static_cast<int32_t*>(ctx.scratch.take(B * static_cast<int64_t>(sizeof(int32_t))));
  if (ctx.dry) return {};
  for (int32_t b = 0; b < B; ++b) order[b] = b;
  std::sort(order, order + B, [&](int32_t a, int32_t b) {
    return std::pair(-segments.length(a), a) < std::pair(-segments.length(b), b);
  });
  Item* next = items;
  for (int32_t i = 0; i < B; ++i)
    for (int32_t head = 0; head < heads; ++head)
      for (int64_t first = 0, T = segments.length(order[i]); first < T; first += rows)
        *next++ = {order[i], head, first, std::min(T, first + rows)};
  return {items, next};
}

struct Heads {
  Tensor qkv, y, lse;
  RelativeBias bias;
  int64_t D;
  Rng rng;
  Dropout dropout;
  Segments segments;

  AttentionHead at(const Item& item) const {
    const int64_t start = segments.starts[item.utterance], C = y.width();
    const float* q = qkv.row(start) + item.head * D;
    Dropout mine = dropout;
    mine.site += static_cast<uint32_t>(item.head);
    return {.q = q,
            .k = q + C,
            .v = q + 2 * C,
            .qkv_stride = qkv.row_stride,
            .y = y.row(start) + item.head * D,
            .lse = lse.row(item.head) + start,
            .y_stride = y.row_stride,
            .T = segments.length(item.utterance),
            .D = D,
            .rng = rng,
            .dropout = mine,
            .utterance = static_cast<uint32_t>(segments.utterances[item.utterance]),
            .gate = bias ? bias.gate.row(item.head) + start : nullptr,
            .table = bias ? bias.table.row(item.head) : nullptr,
            .reach = bias ? bias.table.width() / 2 : 0};
  }
};

void check(Tensor qkv, const RelativeBias& bias, int heads, Segments segments) {
  const int64_t width = qkv.width();
  CHECK(heads > 0 && width % (3 * heads) == 0, "attention: qkv is {}, {} heads", qkv.shape, heads);
  const int64_t D = width / (3 * heads);
  CHECK(D % 4 == 0 && D <= 128, "attention: head width is {} (expected a multiple of 4 up to 128)",
        D);
  CHECK(qkv.rows() == segments.total(), "attention: qkv is {}, {} frames in all", qkv.shape,
        segments.total());
  if (!bias) return;
  CHECK((bias.gate.shape == Shape{heads, qkv.rows()}),
        "attention: the gate is {}, {} heads, {} frames", bias.gate.shape, heads, qkv.rows());
  CHECK(bias.table.shape.rank() == 2 && bias.table.shape[0] == heads &&
            bias.table.width() % 2 == 1 && bias.table.width() > 1,
        "attention: the table is {} (expected an odd number of distances above 1 for {} heads)",
        bias.table.shape, heads);
}

double pairs(Segments segments) {  // of frames
  double total = 0;
  for (int b = 0; b < segments.batch(); ++b)
    total += static_cast<double>(segments.length(b)) * segments.length(b);
  return total;
}

// One piece of memory for each thread.
struct ThreadMemory {
  float* data;
  int64_t numbers;  // of a piece
};

ThreadMemory thread_memory(Context& ctx, int64_t numbers) {
  const int64_t bytes = omp_get_max_threads() * numbers * static_cast<int64_t>(sizeof(float));
  return {static_cast<float*>(ctx.scratch.take(bytes)), numbers};
}

// f(item, memory of the thread) for every item.
template <class F>
void for_items(std::span<const Item> items, ThreadMemory memory, F&& f) {
#pragma omp parallel for schedule(dynamic, 1)
  for (size_t i = 0; i < items.size(); ++i)
    f(items[i], memory.data + omp_get_thread_num() * memory.numbers);
}

}  // namespace

AttentionOut attention_forward(Context& ctx, Tensor qkv, const RelativeBias& bias, int heads,
                               Dropout dropout, Segments segments) {
  check(qkv, bias, heads, segments);
  const int64_t T = qkv.rows(), C = qkv.width() / 3, D = C / heads;
  const AttentionOut out{ctx.activation({T, C}, qkv.dtype), ctx.acts.loose({heads, T})};
  ProfileScope profile(ctx.profile, "attention", 4.0 * C * pairs(segments),
                       4.0 * static_cast<double>(bytes_of(qkv.dtype, T * C)));
  if (ctx.device == Device::cuda)
    return cuda::attention_forward(ctx, qkv, bias, heads, dropout, segments, out), out;
  ScratchScope scratch(ctx.scratch);
  const std::span<Item> items = plan(ctx, segments, heads, kRows);
  const ThreadMemory memory =
      thread_memory(ctx, HWY_DYNAMIC_DISPATCH(forward_scratch)(ctx.math, segments.longest(), D,
                                                               static_cast<bool>(bias)));
  if (ctx.dry) return out;
  const Heads all{qkv, out.y, out.lse, bias, D, ctx.rng, dropout, segments};
  for_items(items, memory, [&](const Item& item, float* mine) {
    HWY_DYNAMIC_DISPATCH(forward_rows)(ctx.math, all.at(item), item.first, item.last, mine);
  });
  return out;
}

namespace {

// What each utterance adds to the table's gradient, [2 T_b - 1] of each head.
struct TableParts {
  float* data = nullptr;  // [H, 2 T]; null: not wanted
  int64_t frames = 0;

  float* of(int64_t start, int head) const {
    return data ? data + 2 * (head * frames + start) : nullptr;
  }
};

// Utterance by utterance; distances beyond the table's go to its ends.
void sum_table(const TableParts& parts, Segments segments, const Grad& to) {
  const int64_t reach = to.to.width() / 2;
  for (int head = 0; head < to.to.rows(); ++head) {
    float* row = to.to.row(head);
    if (!to.add) std::fill_n(row, 2 * reach + 1, 0.0f);
    for (int b = 0; b < segments.batch(); ++b) {
      const int64_t T = segments.length(b);
      const float* part = parts.of(segments.starts[b], head) + T - 1;
      for (int64_t distance = 1 - T; distance < T; ++distance)
        row[reach + std::clamp(distance, -reach, reach)] += part[distance];
    }
  }
}

}  // namespace

void attention_backward(Context& ctx, Tensor dy, Tensor qkv, const RelativeBias& bias,
                        const AttentionOut& out, int heads, Dropout dropout, Segments segments,
                        const AttentionGrads& grads) {
  if (!grads.qkv && !grads.gate && !grads.table) return;
  const int64_t T = qkv.rows(), C = qkv.width() / 3, D = C / heads;
  CHECK(dy.shape == out.y.shape, "attention: dy is {}, y {}", dy.shape, out.y.shape);
  ProfileScope profile(ctx.profile, "attention.backward", 10.0 * C * pairs(segments),
                       9.0 * static_cast<double>(bytes_of(qkv.dtype, T * C)));
  if (ctx.device == Device::cuda)
    return cuda::attention_backward(ctx, dy, qkv, bias, out, heads, dropout, segments, grads);
  ScratchScope scratch(ctx.scratch);
  const std::span<Item> items = plan(ctx, segments, heads, std::max<int64_t>(T, 1));
  const ThreadMemory memory =
      thread_memory(ctx, HWY_DYNAMIC_DISPATCH(backward_scratch)(ctx.math, segments.longest(), D,
                                                                static_cast<bool>(bias)));
  const TableParts parts{grads.table ? ctx.temporary({2 * heads * T}).f32() : nullptr, T};
  if (ctx.dry) return;
  const Heads all{qkv, out.y, out.lse, bias, D, ctx.rng, dropout, segments};
  for_items(items, memory, [&](const Item& item, float* mine) {
    const int64_t start = segments.starts[item.utterance];
    const Grad& to = grads.qkv;
    float* dq = to ? to.to.row(start) + item.head * D : nullptr;
    const AttentionHeadGrads head{
        .dy = dy.row(start) + item.head * D,
        .dy_stride = dy.row_stride,
        .dq = dq,
        .dk = to ? dq + C : nullptr,
        .dv = to ? dq + 2 * C : nullptr,
        .dqkv_stride = to ? to.to.row_stride : 0,
        .add = to.add,
        .dgate = grads.gate ? grads.gate.to.row(item.head) + start : nullptr,
        .dgate_add = grads.gate.add,
        .dtable = parts.of(start, item.head)};
    HWY_DYNAMIC_DISPATCH(backward_head)(ctx.math, all.at(item), head, mine);
  });
  if (grads.table) sum_table(parts, segments, grads.table);
}

}  // namespace sft
#endif
