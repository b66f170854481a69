#include "engine/cuda/gemm_choices.h"

#include <charconv>
#include <filesystem>
#include <vector>

#include "engine/cuda/runtime.h"
#include "engine/io/file.h"

namespace sft::cuda {
namespace {

constexpr std::string_view kFirstLine = "sft gemm 1";
constexpr uint64_t kLargestFile = uint64_t{256} << 20;
constexpr uint32_t kLargestAlignment = 16;

uint32_t alignment_of(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address) | kLargestAlignment;
  return static_cast<uint32_t>(bits & -bits);
}

// f(field) for every number of a key, in the order of the file.
template <class Key, class F>
void for_numbers(Key& key, F&& f) {
  f(key.M), f(key.N), f(key.K), f(key.lda), f(key.ldb), f(key.ldc), f(key.ldfrom);
  f(key.align_a), f(key.align_b), f(key.align_c), f(key.align_from), f(key.align_bias);
}
template <class Key, class F>
void for_flags(Key& key, F&& f) {
  f(key.transpose_a), f(key.transpose_b), f(key.bias);
}

// The text, line by line and word by word.
class Reader {
 public:
  Reader(std::string_view text, const std::string& path) : text_(text), path_(path) {}

  [[noreturn]] void reject(std::string_view expected) const {
    fail(Kind::input, Hint{"without the file, algorithms are chosen anew"},
         "{}: line {}: not a record of products (expected {})", path_, line_, expected);
  }
  // The next line, whose first word this is; false: it begins with another.
  bool next(std::string_view word) {
    const size_t end = text_.find('\n');
    if (end == text_.npos) return false;
    const std::string_view line = text_.substr(0, end);
    if (!line.starts_with(word) || (line.size() > word.size() && line[word.size()] != ' '))
      return false;
    rest_ = line.substr(word.size());
    text_.remove_prefix(end + 1);
    ++line_;
    return true;
  }
  std::string_view rest() const { return rest_.empty() ? rest_ : rest_.substr(1); }
  std::string_view word() {
    if (!rest_.starts_with(' ')) reject("another word");
    rest_.remove_prefix(1);
    const std::string_view word = rest_.substr(0, rest_.find(' '));
    rest_.remove_prefix(word.size());
    return word;
  }
  template <class T>
  T number(int base = 10) {
    const std::string_view digits = word();
    T value{};
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (error != std::errc() || end != digits.data() + digits.size()) reject("a number");
    if (value < T{}) reject("a number that is not negative");
    return value;
  }
  void end_of_line() const {
    if (!rest_.empty()) reject("the end of the line");
  }
  bool done() const { return text_.empty(); }

 private:
  std::string_view text_, rest_;
  const std::string& path_;
  int64_t line_ = 0;
};

bool read_flag(Reader& line) {
  const auto value = line.number<int>();
  if (value > 1) line.reject("0 or 1");
  return value == 1;
}

Dtype read_dtype(Reader& line) {
  const std::string_view word = line.word();
  for (Dtype dtype : {Dtype::f32, Dtype::bf16})
    if (word == name(dtype)) return dtype;
  line.reject("f32 or bf16");
}

GemmKey read_key(Reader& line) {
  GemmKey key;
  for_flags(key, [&](bool& flag) { flag = read_flag(line); });
  key.in = read_dtype(line), key.out = read_dtype(line);
  for_numbers(key, [&](auto& n) { n = line.number<std::remove_reference_t<decltype(n)>>(); });
  for (uint32_t a : {key.align_a, key.align_b, key.align_c, key.align_from, key.align_bias})
    if (a == 0 || a > kLargestAlignment || (a & (a - 1))) line.reject("an alignment");
  if (!key.M || !key.N || !key.K) line.reject("a product of something");
  return key;
}

LstmShape read_shape(Reader& line) {
  LstmShape shape{.type = read_dtype(line)};
  for (int64_t* n : {&shape.inputs, &shape.units, &shape.directions}) *n = line.number<int64_t>();
  if (!shape.inputs || !shape.units || shape.directions < 1 || shape.directions > 2)
    line.reject("a layer");
  return shape;
}

}  // namespace

GemmKey::GemmKey(const Gemm& g)
    : transpose_a(g.transpose_a),
      transpose_b(g.transpose_b),
      bias(g.bias),
      in(g.in),
      out(g.out),
      M(g.M),
      N(g.N),
      K(g.K),
      lda(g.lda),
      ldb(g.ldb),
      ldc(g.ldc),
      ldfrom(g.from ? g.ldfrom : g.ldc),
      align_a(alignment_of(g.A)),
      align_b(alignment_of(g.B)),
      align_c(alignment_of(g.C)),
      align_from(alignment_of(g.from ? g.from : g.C)),
      align_bias(alignment_of(g.bias)) {}

std::string to_text(const GemmChoices& choices) {
  std::map<GemmAlgorithm, size_t> numbers;  // of the algorithms, which are few
  std::string algorithms, products;
  for (const auto& [key, algorithm] : choices.algorithms) {
    const auto [known, added] = numbers.try_emplace(algorithm, numbers.size());
    if (added) {
      algorithms += "algorithm";
      for (uint64_t word : algorithm) algorithms += fmt::format(" {:016x}", word);
      algorithms += '\n';
    }
    products += "product";
    for_flags(key, [&](bool flag) { products += flag ? " 1" : " 0"; });
    products += fmt::format(" {} {}", name(key.in), name(key.out));
    for_numbers(key, [&](auto number) { products += fmt::format(" {}", number); });
    products += fmt::format(" {}\n", known->second);
  }
  for (const auto& [shape, by] : choices.lstms)
    products += fmt::format("lstm {} {} {} {} {}\n", name(shape.type), shape.inputs, shape.units,
                            shape.directions, by);
  return fmt::format("{}\nby {}\n{}{}end {}\n", kFirstLine, choices.by, algorithms, products,
                     choices.algorithms.size());
}

GemmChoices parse_gemm_choices(std::string_view text, const std::string& path) {
  Reader in(text, path);
  GemmChoices choices;
  std::vector<GemmAlgorithm> algorithms;
  if (!in.next(kFirstLine)) in.reject(kFirstLine);
  in.end_of_line();
  if (!in.next("by")) in.reject("by");
  choices.by = in.rest();
  while (in.next("algorithm")) {
    for (uint64_t& word : algorithms.emplace_back()) word = in.number<uint64_t>(16);
    in.end_of_line();
  }
  while (in.next("product")) {
    const GemmKey key = read_key(in);
    const auto algorithm = in.number<size_t>();
    in.end_of_line();
    if (algorithm >= algorithms.size()) in.reject("the number of an algorithm");
    if (!choices.algorithms.emplace(key, algorithms[algorithm]).second)
      in.reject("a product that was not there before");
  }
  while (in.next("lstm")) {
    const LstmShape shape = read_shape(in);
    if (in.rest().empty()) in.reject("who computes it");
    if (!choices.lstms.emplace(shape, in.rest()).second)
      in.reject("a layer that was not there before");
  }
  if (!in.next("end")) in.reject("end");
  if (in.number<size_t>() != choices.algorithms.size()) in.reject("as many products");
  in.end_of_line();
  if (!in.done()) in.reject("nothing after the end");
  return choices;
}

void save_gemm_choices(const Runtime& device, const std::string& path) {
  write_text(path, to_text(device.gemm_choices()), Existing::replace);
}

std::string load_gemm_choices(Runtime& device, const std::string& path) {
  std::error_code code;
  if (!std::filesystem::exists(path, code)) return {};
  const GemmChoices recorded = parse_gemm_choices(read_text(path, kLargestFile), path);
  const int64_t refused = device.use_gemm_choices(recorded);
  if (!refused) return {};
  return fmt::format(
      "algorithms of {} of {} kinds of products are chosen anew, and may round otherwise: they "
      "were recorded with {}, this is {}",
      refused, recorded.algorithms.size(), printable(recorded.by), device.gemm_choices().by);
}

}  // namespace sft::cuda
