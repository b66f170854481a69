#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/cpu/gemm.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/gemm.h"
#include "engine/cpu/product-inl.h"
#include "engine/cpu/tile-inl.h"
#include "engine/cpu/vector_math-inl.h"

#ifndef SFT_GEMM_PIECE
#define SFT_GEMM_PIECE
namespace sft::cpu {

// A chunk of rows times some panels: one thread's share of a product.
struct Piece {
  ProductRows x;
  int64_t rows, columns;  // columns of y; panels hold more, up to whole ones
  const float* panels;
  float* copy;
  ProductSums sums;
  float* y;
  int64_t y_stride;
  const float* bias;  // or null
  bool gelu;
  const float* residual;  // or null
  int64_t residual_stride;
  float* pre;  // or null
  int64_t pre_stride;
  bool once = false;  // y is not read soon
};

}  // namespace sft::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

int64_t panel_columns() { return kTileColumns; }

// Rows a few kilobytes apart are too many streams for the processor to follow.
HWY_INLINE void fetch_part(const float* w, int64_t stride, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < width; k += 16) __builtin_prefetch(w + r * stride + k);
}

// Panel [K, kTileColumns] of up to kTileColumns rows of W, zeros behind the last.
void pack_panel(const float* w, int64_t stride, int64_t rows, int64_t K, float* panel) {
  constexpr int64_t kDepth = 64;  // at a time
  alignas(64) float temporary[kDepth * kTileColumns];
  const int64_t whole = K / 4 * 4;
  for (int64_t k = 0; k < whole; k += kDepth) {
    fetch_part(w + k + kDepth, stride, rows, std::min(kDepth, whole - k - kDepth));
    transpose_in<kTileColumns>(w + k, stride, rows, std::min(kDepth, whole - k), 1, temporary,
                               panel + k * kTileColumns);
  }
  for (int64_t k = whole; k < K; ++k)
    for (int64_t r = 0; r < kTileColumns; ++r)
      panel[k * kTileColumns + r] = r < rows ? w[r * stride + k] : 0;
}

// y [count, n] of rows from r and columns from c on.
template <bool kGelu>
void end_rows(const cpu::Piece& p, const float* sums, int64_t step, int64_t r, int64_t count,
              int64_t c, int64_t n) {
  for (int64_t last = r + count; r < last; ++r, sums += step) {
    const float* residual = p.residual ? p.residual + r * p.residual_stride + c : nullptr;
    float* y = p.y + r * p.y_stride + c;
    float* pre = p.pre ? p.pre + r * p.pre_stride + c : nullptr;
    for_vectors(n, [&](int64_t i, int64_t m) {
      Vec v = load(sums + i, m);
      if (p.bias) v = hn::Add(v, load(p.bias + c + i, m));
      if (pre) stream(v, pre + i, m);
      if (kGelu) v = gelu(v);
      if (residual) v = hn::Add(v, load(residual + i, m));
      p.once ? stream(v, y + i, m) : store(v, y + i, m);
    });
  }
}

// From sums whose first row is row r and whose first column is column c.
void end_tile(const cpu::Piece& p, const float* sums, int64_t step, int64_t r, int64_t count,
              int64_t c, int64_t n) {
  const auto end = p.gelu ? end_rows<true> : end_rows<false>;
  end(p, sums, step, r, count, c, n);
}

void matmul_piece(const cpu::Piece& p) {
  const int64_t padded = (p.columns + kTileColumns - 1) / kTileColumns * kTileColumns;
  panel_product(
      p.x, p.rows, {p.panels, padded, {p.panels, p.x.from(p.rows)}}, p.copy, p.sums,
      [&](const float* sums, int64_t step, int64_t r, int64_t count, int64_t c, int64_t n) {
        end_tile(p, sums, step, r, count, c, std::min(n, p.columns - c));
      });
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <hwy/cache_control.h>

#include <cstring>
#include <dnnl.hpp>

#include "engine/cpu/isa.h"
#include "engine/cpu/parallel.h"
#include "engine/cpu/rows.h"
#include "engine/formats/numbers.h"

namespace sft::cpu {
namespace {

HWY_EXPORT(panel_columns);
HWY_EXPORT(pack_panel);
HWY_EXPORT(end_tile);
HWY_EXPORT(matmul_piece);

// Columns of a piece where the sums of all its rows are kept, since they are made in several parts.
constexpr int64_t kKeptColumns = 768;
constexpr int64_t kSums = kProductRows * (kKeptColumns + kProductGap);

thread_local int64_t calls = 0;

constexpr int64_t kMostPanelColumns = 32;  // of any target
constexpr int64_t kWidened = 256;          // numbers of a row at a time; whole blocks of q8_0

int64_t whole(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Of a weight [N, K] that is widened block by block: whole panels, at most 2 MiB a thread.
int64_t block_columns(int64_t N, int64_t K, int64_t width) {
  const int64_t numbers = omp_get_max_threads() * (int64_t{1} << 19);
  const int64_t most = std::max(width, numbers / std::max<int64_t>(K, 1) / width * width);
  return std::min(most, whole(N, width));
}

// Columns of a piece: all, unless there are fewer chunks of rows than threads or the sums are kept.
int64_t piece_columns(const PackedWeight& weight, int64_t chunks) {
  const int64_t width = HWY_DYNAMIC_DISPATCH(panel_columns)();
  const int64_t pieces = (omp_get_max_threads() + chunks - 1) / chunks;
  const int64_t each = std::max<int64_t>(width, whole((weight.N + pieces - 1) / pieces, width));
  return weight.K > kProductDepth && !weight.narrowed ? std::min(each, kKeptColumns) : each;
}

Piece piece_of(Tensor x, const PackedWeight& weight, Tensor y, const MatmulEnd& end) {
  float* memory = weight.threads.mine();
  const bool kept = weight.K > kProductDepth;
  return {
      .x = {x.f32(), x.row(x.rows() - 1) + weight.K, x.row_stride, weight.K},
      .rows = x.rows(),
      .columns = y.width(),
      .panels = weight.data,
      .copy = memory,
      .sums = {memory + kProductCopy, (kept ? kKeptColumns : kProductColumns) + kProductGap, kept},
      .y = y.f32(),
      .y_stride = y.row_stride,
      .bias = end.bias ? end.bias.f32() : nullptr,
      .gelu = end.gelu,
      .residual = end.residual ? end.residual.f32() : nullptr,
      .residual_stride = end.residual ? end.residual.row_stride : 0,
      .pre = end.pre ? end.pre.f32() : nullptr,
      .pre_stride = end.pre ? end.pre.row_stride : 0};
}

// Columns [first, first + count) of what a piece makes.
Piece columns_of(Piece piece, int64_t first, int64_t count) {
  piece.columns = count;
  piece.panels += first * piece.x.depth;
  piece.y += first;
  if (piece.bias) piece.bias += first;
  if (piece.residual) piece.residual += first;
  if (piece.pre) piece.pre += first;
  return piece;
}

}  // namespace

narrow::Panels narrow_panels(Context& ctx, const void* weight, uint32_t kind,
                             const narrow::Vectors& from) {
  namespace n = narrow;
  const int64_t bytes = n::panel_bytes(from.count, from.depth);
  void* memory =
      derived<char>(ctx, weight, kind + static_cast<uint32_t>(ctx.math), bytes, [&](char* to) {
        const n::Panels panels = n::panels_in(to, ctx.math, from.count, from.depth);
        parallel_for(from.count, n::kTileColumns,
                     [&](int64_t first, int64_t) { n::pack_panel(from, first, panels); });
      });
  return n::panels_in(memory, ctx.math, from.count, from.depth);
}

namespace {

// The same address may be another matrix as well, such as q in qkv.
uint32_t kind_of(std::string_view form, Tensor weight) {
  return fnv1a(form) +
         static_cast<uint32_t>((weight.shape[0] * 31 + weight.shape[1]) * 31 + weight.row_stride);
}

}  // namespace

PackedWeight pack_weight(Context& ctx, Tensor weight, Math math) {
  CHECK(weight.shape.rank() == 2, "matmul: weight is {}, expected [N, K]", weight.shape);
  CHECK(math == Math::exact || math == ctx.math, "matmul: weights in {} of a step in {}",
        name(math), name(ctx.math));
  const int64_t N = weight.shape[0], K = weight.shape[1];
  const int64_t width = HWY_DYNAMIC_DISPATCH(panel_columns)();
  if (math != Math::exact && weight.dtype == Dtype::f32)
    return {.N = N,
            .K = K,
            .threads = ThreadScratch(ctx, narrow::chunk_floats(K)),
            .narrowed = narrow_panels(ctx, weight.data, kind_of("gemm.narrow", weight),
                                      {weight.f32(), N, K, weight.row_stride, 1})};
  if (weight.dtype != Dtype::f32) {
    const ThreadScratch threads(ctx, kProductCopy + kSums);
    auto* block = static_cast<float*>(ctx.scratch.take(block_columns(N, K, width) * K * 4));
    return {nullptr, N, K, threads, weight, block};
  }
  const int64_t count = whole(N, width) * K;
  const float* data = derived(ctx, weight.data, kind_of("gemm", weight), count, [&](float* to) {
    parallel_for(whole(N, width) / width, 1, [&](int64_t panel, int64_t) {
      const int64_t n = panel * width;
      HWY_DYNAMIC_DISPATCH(pack_panel)
      (weight.row(n), weight.row_stride, std::min(width, N - n), K, to + n * K);
    });
  });
  return {data, N, K, ThreadScratch(ctx, kProductCopy + kSums)};
}

namespace {

// Panels of columns [first, first + count) of a weight as files hold it, into weight.block.
void widen_block(const PackedWeight& weight, int64_t first, int64_t count) {
  const int64_t width = HWY_DYNAMIC_DISPATCH(panel_columns)();
  const Tensor& w = weight.stored;
  const auto* bytes = static_cast<const std::byte*>(w.data);
  parallel_for(whole(count, width) / width, 1, [&](int64_t panel, int64_t) {
    alignas(64) float wide[kMostPanelColumns * kWidened];
    const int64_t rows = std::min(width, count - panel * width), from = first + panel * width;
    for (int64_t k = 0; k < weight.K; k += kWidened) {
      const int64_t depth = std::min(kWidened, weight.K - k);
      for (int64_t r = 0; r < rows; ++r)
        to_f32(w.dtype, bytes + bytes_of(w.dtype, (from + r) * w.row_stride + k),
               wide + r * kWidened, depth);
      HWY_DYNAMIC_DISPATCH(pack_panel)
      (wide, kWidened, rows, depth, weight.block + (panel * weight.K + k) * width);
    }
  });
}

// What the end of a tile reads and writes is on its way while its products are made.
void fetch_tile(const Piece& p, int64_t r, int64_t count, int64_t c) {
  constexpr int64_t kLine = 16;
  const auto fetch = [=](const float* data, int64_t stride) {
    for (int64_t i = r; data && i < r + count; ++i)
      for (int64_t j = c; j < c + narrow::kTileColumns; j += kLine)
        __builtin_prefetch(data + i * stride + j, 1);
  };
  if (!p.once) fetch(p.y, p.y_stride);
  if (p.residual != p.y) fetch(p.residual, p.residual_stride);
}

// y of rows, the first of which is row `above` of the tiles, times panels from column `first` on.
void narrow_product(const Piece& p, const narrow::Rows& rows, int64_t above,
                    const narrow::Panels& panels, int64_t first) {
  namespace n = narrow;
  alignas(64) float sums[n::kTileRows * n::kTileColumns];
  for (int64_t c = 0; c < p.columns; c += n::kTileColumns)
    for (int64_t r = 0; r < p.rows; r += n::kTileRows) {
      const int64_t count = std::min(n::kTileRows, p.rows - r);
      fetch_tile(p, r, count, c);
      n::multiply(rows, above + r, panels, first + c, sums, n::kTileColumns);
      HWY_DYNAMIC_DISPATCH(end_tile)
      (p, sums, n::kTileColumns, r, count, c, std::min(n::kTileColumns, p.columns - c));
    }
}

// One thread's share of a product of 16-bit numbers: columns [first, first + count) of y.
void narrow_piece(const Piece& p, const PackedWeight& weight, int64_t first) {
  namespace n = narrow;
  const n::Rows rows = n::rows_in(p.copy, weight.narrowed.math, p.rows, p.x.depth);
  for (int64_t r = 0; r < p.rows; r += n::kTileRows) n::pack_tile(p.x, p.rows, r, rows);
  narrow_product(p, rows, 0, weight.narrowed, first);
}

// With all panels in place.
void multiply(Tensor x, const PackedWeight& weight, Tensor y, const MatmulEnd& end) {
  const int64_t T = y.rows(), N = weight.N;
  const int64_t rows = weight.narrowed ? narrow::chunk(T, weight.K) : product_chunk(T);
  const int64_t chunks = (T + rows - 1) / rows;
  const int64_t columns = piece_columns(weight, chunks), ranges = (N + columns - 1) / columns;
  parallel_for(chunks * ranges, 1, [&](int64_t begin, int64_t end_piece) {
    for (int64_t i = begin; i < end_piece; ++i) {
      const int64_t r = i / ranges * rows, n = std::min(rows, T - r), c = i % ranges * columns;
      MatmulEnd mine = end;
      for (Tensor* rows : {&mine.residual, &mine.pre})
        if (*rows) *rows = rows->slice(r, n);
      const Piece all = piece_of(x.slice(r, n), weight, y.slice(r, n), mine);
      const Piece piece = columns_of(all, c, std::min(columns, N - c));
      if (weight.narrowed)
        narrow_piece(piece, weight, c);
      else
        HWY_DYNAMIC_DISPATCH(matmul_piece)(piece);
    }
    hwy::FlushStream();
  });
}

}  // namespace

void matmul(Tensor x, const PackedWeight& weight, Tensor y, const MatmulEnd& end) {
  CHECK(x.shape == (Shape{y.rows(), weight.K}) && y.width() == weight.N,
        "matmul: x is {}, y {}, weight [{}, {}]", x.shape, y.shape, weight.N, weight.K);
  if (y.rows() == 0) return;
  ++calls;
  if (!weight.stored) return multiply(x, weight, y, end);
  const int64_t columns = block_columns(weight.N, weight.K, HWY_DYNAMIC_DISPATCH(panel_columns)());
  for (int64_t n = 0; n < weight.N; n += columns) {
    const int64_t count = std::min(columns, weight.N - n);
    widen_block(weight, n, count);
    MatmulEnd part = end;
    if (end.bias) part.bias = end.bias.slice(n, count);
    for (Tensor* columns : {&part.residual, &part.pre})
      if (*columns) *columns = columns->columns(n, count);
    multiply(x, {weight.block, count, weight.K, weight.threads}, y.columns(n, count), part);
  }
}

void sgemm(bool transpose_a, bool transpose_b, int64_t M, int64_t N, int64_t K, const float* A,
           int64_t lda, const float* B, int64_t ldb, float beta, float* C, int64_t ldc) {
  [[maybe_unused]] static const bool limited = [] {
    if (isa() == "avx2") dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2);
    if (isa() == "scalar") dnnl::set_max_cpu_isa(dnnl::cpu_isa::sse41);
    return true;
  }();
  ++calls;
  if (K == 0 && beta == 0)
    for (int64_t m = 0; m < M; ++m) std::memset(C + m * ldc, 0, N * sizeof(float));
  if (M == 0 || N == 0 || K == 0) return;
  const dnnl_status_t status = dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', M, N, K,
                                          1, A, lda, B, ldb, beta, C, ldc);
  if (status == dnnl_out_of_memory) fail(Kind::resource, "oneDNN: out of memory in sgemm");
  CHECK(status == dnnl_success, "oneDNN: sgemm failed with status {}", static_cast<int>(status));
}

BackwardWeight pack_backward(Context& ctx, Tensor weight, int64_t rows, bool dx, bool dweight,
                             Math math) {
  const int64_t N = weight.shape[0], K = weight.shape[1];
  BackwardWeight out{.weight = weight, .math = math, .most_rows = rows};
  if (math == Math::exact) return out;
  if (dx)
    out.transposed = {.N = K,
                      .K = N,
                      .threads = ThreadScratch(ctx, narrow::chunk_floats(N)),
                      .narrowed = narrow_panels(ctx, weight.data, kind_of("gemm.narrow.dx", weight),
                                                {weight.f32(), K, N, 1, weight.row_stride})};
  if (dweight)
    out.vectors =
        ctx.scratch.take(whole(narrow::row_bytes(N, rows), 64) + narrow::panel_bytes(K, rows));
  return out;
}

void matmul_dx(Tensor dy, const BackwardWeight& back, Grad dx) {
  if (!dx) return;
  const Tensor& weight = back.weight;
  if (back.math != Math::exact)
    return matmul(dy, back.transposed, dx.to, {.residual = dx.add ? dx.to : Tensor()});
  sgemm(false, false, dy.rows(), weight.shape[1], weight.shape[0], dy.f32(), dy.row_stride,
        weight.f32(), weight.row_stride, dx.add ? 1 : 0, dx.to.f32(), dx.to.row_stride);
}

namespace {

// dweight [N, K]: sums over T of blocks of rows.
void narrow_dweight(Tensor dy, Tensor x, const BackwardWeight& back, Grad dweight, Grad dbias) {
  namespace n = narrow;
  const int64_t T = dy.rows(), N = dy.width(), K = x.width();
  const n::Rows left = n::rows_in(back.vectors, back.math, N, T);
  char* behind = static_cast<char*>(back.vectors) + whole(n::row_bytes(N, back.most_rows), 64);
  const n::Panels right = n::panels_in(behind, back.math, K, T);
  parallel_for(N, n::kTogether, [&](int64_t first, int64_t) {
    float sums[n::kTogether];
    n::pack_tiles({dy.f32(), N, T, 1, dy.row_stride}, first, left, sums);
    if (!dbias) return;
    for (int64_t i = 0; i < std::min(n::kTogether, N - first); ++i) {
      float& to = dbias.to.f32()[first + i];
      to = dbias.add ? to + sums[i] : sums[i];
    }
  });
  parallel_for(K, n::kTileColumns, [&](int64_t first, int64_t) {
    n::pack_panel({x.f32(), K, T, 1, x.row_stride}, first, right);
  });
  const int64_t rows = narrow::chunk(N, T);
  parallel_for(N, rows, [&](int64_t begin, int64_t end) {
    const Tensor to = dweight.to.slice(begin, end - begin);
    Piece p{.rows = end - begin, .columns = K, .y = to.f32(), .y_stride = to.row_stride};
    p.once = !dweight.add;
    if (dweight.add) p.residual = p.y, p.residual_stride = p.y_stride;
    narrow_product(p, left, begin, right, 0);
    hwy::FlushStream();
  });
}

}  // namespace

void matmul_dweight(Tensor dy, Tensor x, const BackwardWeight& back, Grad dweight, Grad dbias) {
  if (!dweight) return sum_rows(dy, dbias);
  if (back.math != Math::exact && dy.rows() > 0) {
    CHECK(dy.rows() <= back.most_rows, "matmul_dweight: {} rows, room for {}", dy.rows(),
          back.most_rows);
    ++calls;
    return narrow_dweight(dy, x, back, dweight, dbias);
  }
  sum_rows(dy, dbias);
  sgemm(true, false, dy.width(), x.width(), dy.rows(), dy.f32(), dy.row_stride, x.f32(),
        x.row_stride, dweight.add ? 1 : 0, dweight.to.f32(), dweight.to.row_stride);
}

int64_t gemm_calls() { return calls; }

}  // namespace sft::cpu
#endif
