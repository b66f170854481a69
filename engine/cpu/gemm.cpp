#include "engine/cpu/gemm.h"

#include <omp.h>

#include <array>
#include <cstring>
#include <dnnl.hpp>
#include <unordered_map>

#include "engine/cpu/isa.h"

namespace sft::cpu {
namespace {

constexpr int64_t kPackRows = 512;  // rows for which a weight's layout is asked

void check_dnnl(dnnl_status_t status, const char* what) {
  if (status == dnnl_out_of_memory) fail(Kind::resource, "oneDNN: out of memory in {}", what);
  CHECK(status == dnnl_success, "oneDNN: {} failed with status {}", what, static_cast<int>(status));
}

// Calls f, turning the library's exceptions into ours.
template <class F>
decltype(auto) guarded(const char* what, F&& f) {
  try {
    return f();
  } catch (const dnnl::error& error) {
    if (error.status == dnnl_out_of_memory)
      fail(Kind::resource, "oneDNN: out of memory in {}", what);
    fail(Kind::internal, "oneDNN: {}: {} (status {})", what, error.message,
         static_cast<int>(error.status));
  }
}

// Everything a compiled product depends on.
struct Key {
  int64_t M, N, K, ldx, ldy, ld_residual;
  int64_t options;  // bits: bias, GELU, accumulate; then the number of threads

  bool operator==(const Key&) const = default;
};

constexpr int64_t kBias = 1, kGelu = 2, kAccumulate = 4, kThreads = 8;

struct HashKey {
  size_t operator()(const Key& key) const {
    uint64_t h = 0;
    for (int64_t v : {key.M, key.N, key.K, key.ldx, key.ldy, key.ld_residual, key.options}) {
      h = (h ^ static_cast<uint64_t>(v)) * 0x9E3779B97F4A7C15u;
      h ^= h >> 32;
    }
    return h;
  }
};

dnnl::memory::desc matrix(int64_t rows, int64_t width, int64_t stride) {
  return {{rows, width}, dnnl::memory::data_type::f32, dnnl::memory::dims{stride, 1}};
}

dnnl::matmul::primitive_desc description(const dnnl::engine& engine, const Key& key,
                                         const dnnl::memory::desc& weights) {
  dnnl::post_ops ends;
  if (key.options & kAccumulate) ends.append_sum();
  if (key.options & kGelu) ends.append_eltwise(1, dnnl::algorithm::eltwise_gelu_erf, 0, 0);
  if (key.ld_residual)
    ends.append_binary(dnnl::algorithm::binary_add, matrix(key.M, key.N, key.ld_residual));
  dnnl::primitive_attr attributes;
  attributes.set_post_ops(ends);
  const auto x = matrix(key.M, key.K, key.ldx), y = matrix(key.M, key.N, key.ldy);
  if (key.options & kBias)
    return {dnnl::matmul::desc(x, weights, matrix(1, key.N, key.N), y), attributes, engine};
  return {dnnl::matmul::desc(x, weights, y), attributes, engine};
}

// A compiled product and its operands, whose pointers are set at each call.
class Product {
 public:
  Product(const dnnl::engine& engine, const Key& key, const dnnl::memory::desc& weights) {
    const auto compiled = description(engine, key, weights);
    primitive_ = dnnl::matmul(compiled);
    const auto operand = [&](int argument, const dnnl::memory::desc& desc) {
      memories_[count_] = dnnl::memory(desc, engine, nullptr);
      arguments_[count_] = {argument, memories_[count_].get()};
      ++count_;
    };
    operand(DNNL_ARG_SRC, compiled.src_desc());
    operand(DNNL_ARG_WEIGHTS, weights);
    operand(DNNL_ARG_DST, compiled.dst_desc());
    if (key.options & kBias) operand(DNNL_ARG_BIAS, compiled.query_md(dnnl::query::weights_md, 1));
    if (key.ld_residual)
      operand(DNNL_ARG_ATTR_MULTIPLE_POST_OP(key.options & kGelu ? 1 : 0) | DNNL_ARG_SRC_1,
              matrix(key.M, key.N, key.ld_residual));
  }

  // Pointers in the order above.
  void run(dnnl_stream_t stream, std::initializer_list<const void*> pointers) const {
    int i = 0;
    for (const void* pointer : pointers)
      if (pointer)
        check_dnnl(dnnl_memory_set_data_handle(arguments_[i++].memory, const_cast<void*>(pointer)),
                   "set_data_handle");
    CHECK(i == count_, "matmul: {} operands, {} pointers", count_, i);
    check_dnnl(dnnl_primitive_execute(primitive_.get(), stream, count_, arguments_.data()),
               "matmul");
  }

 private:
  dnnl::matmul primitive_;
  std::array<dnnl::memory, 5> memories_;
  std::array<dnnl_exec_arg_t, 5> arguments_;
  int count_ = 0;
};

// A compiled copy of a plain weight [N, K] into a packed layout, in the same way.
class Packing {
 public:
  Packing(const dnnl::engine& engine, const dnnl::memory::desc& plain,
          const dnnl::memory::desc& packed)
      : from_(plain, engine, nullptr), to_(packed, engine, nullptr), copy_(from_, to_) {}

  void run(dnnl_stream_t stream, const float* from, float* to) const {
    check_dnnl(dnnl_memory_set_data_handle(from_.get(), const_cast<float*>(from)), "a weight");
    check_dnnl(dnnl_memory_set_data_handle(to_.get(), to), "a packed weight");
    const std::array<dnnl_exec_arg_t, 2> arguments{
        {{DNNL_ARG_FROM, from_.get()}, {DNNL_ARG_TO, to_.get()}}};
    check_dnnl(dnnl_primitive_execute(copy_.get(), stream, 2, arguments.data()), "reorder");
  }

 private:
  dnnl::memory from_, to_;
  dnnl::reorder copy_;
};

// The library's handles and what was compiled, of one thread.
class Library {
 public:
  Library() {
    const std::string_view set = isa();
    if (set == "avx2") dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2);
    if (set == "scalar") dnnl::set_max_cpu_isa(dnnl::cpu_isa::sse41);
    engine_ = dnnl::engine(dnnl::engine::kind::cpu, 0);
    stream_ = dnnl::stream(engine_);
  }

  const Product& product(Key key) {
    key.options += kThreads * omp_get_max_threads();
    const auto found = products_.find(key);
    if (found != products_.end()) return found->second;
    return guarded("making a matmul", [&]() -> const Product& {
      const auto weights = layout(key.N, key.K, key.options & kAccumulate);
      return products_.emplace(key, Product(engine_, key, weights)).first->second;
    });
  }

  // How packed weights lie.
  const dnnl::memory::desc& layout(int64_t N, int64_t K, bool accumulate) {
    const Key key{kPackRows, N, K, K, N, 0, accumulate ? kAccumulate : 0};
    const auto found = layouts_.find(key);
    if (found != layouts_.end()) return found->second;
    return guarded("asking for a layout", [&]() -> const dnnl::memory::desc& {
      const dnnl::memory::desc any({K, N}, dnnl::memory::data_type::f32,
                                   dnnl::memory::format_tag::any);
      return layouts_.emplace(key, description(engine_, key, any).weights_desc()).first->second;
    });
  }

  void pack(Tensor weight, bool accumulate, float* to) {
    guarded("packing a weight", [&] {
      packing(weight, accumulate).run(stream_.get(), weight.f32(), to);
      stream_.wait();
    });
  }

  dnnl_stream_t stream() const { return stream_.get(); }
  int64_t calls = 0;

 private:
  const Packing& packing(Tensor weight, bool accumulate) {
    const int64_t N = weight.rows(), K = weight.width();
    const Key key{0,
                  N,
                  K,
                  weight.row_stride,
                  0,
                  0,
                  (accumulate ? kAccumulate : 0) + kThreads * omp_get_max_threads()};
    const auto found = packings_.find(key);
    if (found != packings_.end()) return found->second;
    const dnnl::memory::desc plain({K, N}, dnnl::memory::data_type::f32,
                                   dnnl::memory::dims{1, weight.row_stride});
    return packings_.emplace(key, Packing(engine_, plain, layout(N, K, accumulate))).first->second;
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  std::unordered_map<Key, Product, HashKey> products_;
  std::unordered_map<Key, dnnl::memory::desc, HashKey> layouts_;
  std::unordered_map<Key, Packing, HashKey> packings_;
};

Library& library() {
  thread_local Library library;
  return library;
}

void zero_rows(Tensor y, int64_t begin, int64_t end) {
  if (y.dense()) {
    std::memset(y.row(begin), 0, (end - begin) * y.width() * sizeof(float));
    return;
  }
  for (int64_t r = begin; r < end; ++r) std::memset(y.row(r), 0, y.width() * sizeof(float));
}

}  // namespace

PackedWeight pack_weight(Context& ctx, Tensor weight, bool accumulate) {
  CHECK(weight.shape.rank() == 2, "matmul: weight is {}, expected [N, K]", weight.shape);
  const int64_t N = weight.shape[0], K = weight.shape[1];
  const auto bytes = static_cast<int64_t>(library().layout(N, K, accumulate).get_size());
  // The same address may be another matrix as well, such as q in qkv.
  const uint32_t kind = fnv1a(accumulate ? "gemm.accumulate" : "gemm") +
                        static_cast<uint32_t>((N * 31 + K) * 31 + weight.row_stride);
  const float* data = derived(ctx, weight.data, kind, bytes / static_cast<int64_t>(sizeof(float)),
                              [&](float* to) { library().pack(weight, accumulate, to); });
  return {data, N, K, accumulate};
}

void matmul(Tensor x, const PackedWeight& weight, Tensor y, const MatmulEnd& end) {
  const int64_t T = y.rows();
  CHECK(x.shape == (Shape{T, weight.K}) && y.width() == weight.N,
        "matmul: x is {}, y {}, weight [{}, {}]", x.shape, y.shape, weight.N, weight.K);
  if (T == 0) return;
  const int64_t M = bucket_rows(T);
  const int64_t options =
      (end.bias ? kBias : 0) | (end.gelu ? kGelu : 0) | (weight.accumulate ? kAccumulate : 0);
  Library& lib = library();
  ++lib.calls;
  lib.product({M, weight.N, weight.K, x.row_stride, y.row_stride,
               end.residual ? end.residual.row_stride : 0, options})
      .run(lib.stream(), {x.data, weight.data, y.data, end.bias.data, end.residual.data});
  zero_rows(y, T, M);
}

void sgemm(bool transpose_a, bool transpose_b, int64_t M, int64_t N, int64_t K, const float* A,
           int64_t lda, const float* B, int64_t ldb, float beta, float* C, int64_t ldc) {
  Library& lib = library();
  ++lib.calls;
  if (K == 0 && beta == 0)
    for (int64_t m = 0; m < M; ++m) std::memset(C + m * ldc, 0, N * sizeof(float));
  if (M == 0 || N == 0 || K == 0) return;
  check_dnnl(dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', M, N, K, 1, A, lda, B,
                        ldb, beta, C, ldc),
             "sgemm");
}

void matmul_dx(Tensor dy, Tensor weight, Grad dx) {
  if (!dx) return;
  sgemm(false, false, dy.rows(), weight.shape[1], weight.shape[0], dy.f32(), dy.row_stride,
        weight.f32(), weight.row_stride, dx.add ? 1 : 0, dx.to.f32(), dx.to.row_stride);
}

void matmul_dweight(Tensor dy, Tensor x, Grad dweight) {
  if (!dweight) return;
  sgemm(true, false, dy.width(), x.width(), dy.rows(), dy.f32(), dy.row_stride, x.f32(),
        x.row_stride, dweight.add ? 1 : 0, dweight.to.f32(), dweight.to.row_stride);
}

int64_t gemm_calls() { return library().calls; }

}  // namespace sft::cpu
