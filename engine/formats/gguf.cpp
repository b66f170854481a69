#include "engine/formats/gguf.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <unordered_set>

#include "engine/check.h"
#include "engine/formats/byte_reader.h"

namespace sft {

namespace {

enum class Type : uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

constexpr std::string_view kAlignmentKey = "general.alignment";
constexpr std::string_view kQuantisationKey = "general.quantization_version";
constexpr uint64_t kDefaultAlignment = 32, kLargestAlignment = 1 << 20;
constexpr uint64_t kLongestKey = 65535, kLongestString = 16 << 20, kLongestArray = 16 << 20;
constexpr uint64_t kLongestName = 63, kMostTensors = 1'000'000;
constexpr uint64_t kLargestHead = 256 << 20;
constexpr uint64_t kSmallestPair = 8 + 1 + 4 + 1;            // key, type, value
constexpr uint64_t kSmallestTensor = 8 + 1 + 4 + 8 + 4 + 8;  // name, n_dims, dim, type, offset

struct StoredType {
  uint32_t code;
  Dtype dtype;
};
constexpr StoredType kTensorTypes[] = {
    {0, Dtype::f32},  {1, Dtype::f16},  {8, Dtype::q8_0}, {24, Dtype::i8},   {25, Dtype::i16},
    {26, Dtype::i32}, {27, Dtype::i64}, {28, Dtype::f64}, {30, Dtype::bf16},
};

// The double nearest to the shortest decimal that is this float: 1e-5f reads as 1e-5.
double decimal(float value) {
  const std::string text = fmt::format("{}", value);
  double result = value;
  std::from_chars(text.data(), text.data() + text.size(), result);
  return result;
}

bool survives_f32(double value) { return decimal(static_cast<float>(value)) == value; }

// ---- reading

// Bytes of the smallest value of this type; 0: no type of an element.
uint64_t smallest(Type type) {
  switch (type) {
    case Type::u8:
    case Type::i8:
    case Type::boolean:
      return 1;
    case Type::u16:
    case Type::i16:
      return 2;
    case Type::u32:
    case Type::i32:
    case Type::f32:
      return 4;
    case Type::string:
    case Type::u64:
    case Type::i64:
    case Type::f64:
      return 8;
    case Type::array:
      return 0;
  }
  return 0;
}

std::string_view read_string(ByteReader& in, uint64_t limit, std::string_view what) {
  const uint64_t length = in.u64(what);
  return in.string(length, limit, what);
}

bool read_bool(ByteReader& in, std::string_view what) {
  const uint8_t value = in.u8(what);
  if (value > 1) in.bad(what, "is {} (expected 0 or 1)", value);
  return value == 1;
}

int64_t read_integer(ByteReader& in, Type type, std::string_view what) {
  switch (type) {
    case Type::u8:
      return in.u8(what);
    case Type::i8:
      return in.i8(what);
    case Type::u16:
      return in.u16(what);
    case Type::i16:
      return in.i16(what);
    case Type::u32:
      return in.u32(what);
    case Type::i32:
      return in.i32(what);
    case Type::boolean:
      return read_bool(in, what);
    case Type::u64:
    case Type::i64:
      break;
    default:
      in.bad(what, "has type {} (expected an integer)", static_cast<uint32_t>(type));
  }
  const int64_t value = in.i64(what);
  if (type == Type::u64 && value < 0) in.bad(what, "is above 2^63 - 1");
  return value;
}

double read_real(ByteReader& in, Type type, std::string_view what) {
  return type == Type::f32 ? decimal(in.f32(what)) : in.f64(what);
}

MetadataValue read_array(ByteReader& in, std::string_view key) {
  const auto type = static_cast<Type>(in.u32(key));
  const uint64_t count = in.u64(key);
  if (smallest(type) == 0)
    in.bad(key, "is an array of type {} (expected 0 to 8 or 10 to 12)",
           static_cast<uint32_t>(type));
  if (count > kLongestArray) in.bad(key, "has {} elements (at most {})", count, kLongestArray);
  in.expect_records(count, smallest(type), key);
  const auto fill = [&](auto values, auto&& read) {
    for (uint64_t i = 0; i < count; ++i) values.emplace_back(read());
    return MetadataValue(std::move(values));
  };
  if (type == Type::string)
    return fill(std::vector<std::string>(), [&] { return read_string(in, kLongestString, key); });
  if (type == Type::f32 || type == Type::f64)
    return fill(std::vector<double>(), [&] { return read_real(in, type, key); });
  return fill(std::vector<int64_t>(), [&] { return read_integer(in, type, key); });
}

MetadataValue read_value(ByteReader& in, Type type, std::string_view key) {
  switch (type) {
    case Type::boolean:
      return read_bool(in, key);
    case Type::string:
      return std::string(read_string(in, kLongestString, key));
    case Type::array:
      return read_array(in, key);
    case Type::f32:
    case Type::f64:
      return read_real(in, type, key);
    case Type::u64:
      return in.u64(key);
    default:
      return read_integer(in, type, key);
  }
}

void read_pair(ByteReader& in, Metadata& metadata) {
  const std::string_view key = read_string(in, kLongestKey, "key");
  check_name(in.path(), "key", key);
  if (std::any_of(key.begin(), key.end(), [](char c) { return static_cast<uint8_t>(c) > 0x7e; }))
    in.bad("key", "\"{}\" is not ASCII", printable(key));
  if (metadata.has(key)) in.bad("key", "\"{}\" comes twice", key);
  const uint32_t type = in.u32(key);
  if (type > static_cast<uint32_t>(Type::f64)) in.bad(key, "has type {} (at most 12)", type);
  if (key == kAlignmentKey && static_cast<Type>(type) != Type::u32)
    in.bad(key, "has type {} (expected u32)", type);
  metadata.set(std::string(key), read_value(in, static_cast<Type>(type), key));
}

uint64_t alignment_of(const std::string& path, const Metadata& metadata) {
  if (!metadata.has(kAlignmentKey)) return kDefaultAlignment;
  const uint64_t alignment = metadata.unsigned_integer(kAlignmentKey);
  if (!std::has_single_bit(alignment) || alignment < 8 || alignment > kLargestAlignment)
    fail(Kind::input, "{}: {} is {} (expected a power of two from 8 to {})", printable(path),
         kAlignmentKey, alignment, kLargestAlignment);
  return alignment;
}

Dtype dtype_of_code(const ByteReader& in, uint32_t code, std::string_view name) {
  for (const StoredType& type : kTensorTypes)
    if (type.code == code) return type.dtype;
  in.bad("tensor", "{} has type {} (expected f32, f16, bf16, q8_0 or a plain number)", name, code);
}

Shape read_shape(ByteReader& in, std::string_view name) {
  const uint32_t rank = in.u32("number of dimensions");
  if (rank < 1 || rank > Shape::kMaxRank)
    in.bad("tensor", "{} has {} dimensions (expected 1 to 4)", name, rank);
  std::array<int64_t, Shape::kMaxRank> dims;
  uint64_t count = 1;
  for (uint32_t i = 0; i < rank; ++i) {
    const uint64_t dim = in.u64("dimension");
    if (!checked_mul(count, dim, count) || dim > std::numeric_limits<int64_t>::max() ||
        count > std::numeric_limits<int64_t>::max())
      in.bad("tensor", "{} has more than 2^63 elements", name);
    dims[rank - 1 - i] = static_cast<int64_t>(dim);
  }
  return Shape(std::span(dims).first(rank));
}

// The bytes of a tensor; its offset still counts from the start of the data.
TensorInfo read_tensor(ByteReader& in) {
  TensorInfo tensor;
  tensor.name = read_string(in, kLongestName, "tensor name");
  check_name(in.path(), "tensor name", tensor.name);
  tensor.shape = read_shape(in, tensor.name);
  tensor.dtype = dtype_of_code(in, in.u32("tensor type"), tensor.name);
  const int64_t block = tensor.dtype == Dtype::q8_0 ? 32 : 1;
  if (tensor.shape.back() % block != 0)
    in.bad("tensor", "{} has rows of {} elements, no whole blocks of {}", tensor.name,
           tensor.shape.back(), block);
  const auto blocks = static_cast<uint64_t>(tensor.shape.count() / block);
  if (!checked_mul(blocks, static_cast<uint64_t>(bytes_of(tensor.dtype, block)), tensor.bytes))
    in.bad("tensor", "{} has more than 2^64 bytes", tensor.name);
  tensor.offset = in.u64("tensor offset");
  return tensor;
}

uint64_t read_version(ByteReader& in) {
  if (in.string(4, 4, "magic") != "GGUF") in.bad("magic", "is not GGUF");
  const uint32_t version = in.u32("version");
  if ((version & 0xffff) == 0) in.bad("version", "is byte-swapped: a big-endian file");
  if (version != 2 && version != 3) in.bad("version", "is {} (expected 2 or 3)", version);
  return version;
}

// Adds a tensor of `bytes` bytes to `end`, the padded end of those before.
bool add_padded(uint64_t bytes, uint64_t alignment, uint64_t& end) {
  if (!checked_add(end, bytes, end) || !checked_add(end, alignment - 1, end)) return false;
  end &= ~(alignment - 1);
  return true;
}

void place_tensors(ByteReader& in, uint64_t alignment, std::vector<TensorInfo>& tensors) {
  in.align(alignment, "padding");
  const uint64_t start = in.offset();
  uint64_t end = 0;
  for (TensorInfo& tensor : tensors) {
    if (tensor.offset != end)
      in.bad("tensor", "{} is at {} of the data (expected {}: no holes, no overlaps)", tensor.name,
             tensor.offset, end);
    tensor.offset += start;
    if (!add_padded(tensor.bytes, alignment, end) || end > in.remaining())
      in.bad("tensor", "{} ends past the end of the file (is it cut off?)", tensor.name);
  }
  if (end != in.remaining())
    in.bad("data", "end {} bytes before the file does", in.remaining() - end);
}

}  // namespace

TensorTable parse_gguf(const std::string& path, std::span<const std::byte> start,
                       uint64_t file_size) {
  ByteReader in(printable(path), start, file_size);
  read_version(in);
  const uint64_t tensors = in.u64("number of tensors"), pairs = in.u64("number of keys");
  if (tensors > kMostTensors)
    in.bad("number of tensors", "is {} (at most {})", tensors, kMostTensors);
  in.expect_records(tensors, kSmallestTensor, "number of tensors");
  in.expect_records(pairs, kSmallestPair, "number of keys");
  TensorTable table{Metadata(path), {}};
  for (uint64_t i = 0; i < pairs; ++i) read_pair(in, table.metadata);
  const uint64_t alignment = alignment_of(path, table.metadata);
  std::unordered_set<std::string> names;
  for (uint64_t i = 0; i < tensors; ++i) {
    table.tensors.push_back(read_tensor(in));
    const std::string& name = table.tensors.back().name;
    if (!names.insert(name).second) in.bad("tensor", "{} comes twice", name);
  }
  place_tensors(in, alignment, table.tensors);
  return table;
}

TensorFile open_gguf(const std::string& path) {
  InputFile file(path);
  std::vector<std::byte> start;
  for (uint64_t wanted = 1 << 18;;) {
    start.resize(std::min(file.size(), wanted));
    file.read_at(0, start);
    try {
      TensorTable table = parse_gguf(path, start, file.size());
      std::vector<InputFile> files;
      files.push_back(std::move(file));
      return TensorFile(path, std::move(table), std::move(files));
    } catch (const NeedMoreBytes& need) {
      if (need.bytes > kLargestHead)
        fail(Kind::input, "{}: keys and tensor names take more than {} bytes", printable(path),
             kLargestHead);
      wanted = std::max(need.bytes, 2 * wanted);
    }
  }
}

// ---- writing

namespace {

class HeadWriter {
 public:
  template <class T>
  void number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  void type(Type type) { number(static_cast<uint32_t>(type)); }
  void string(std::string_view text) {
    number(uint64_t{text.size()});
    bytes_ += text;
  }
  void pad(uint64_t alignment) {
    bytes_.resize((bytes_.size() + alignment - 1) / alignment * alignment);
  }
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// u32 where it fits, as ggml's own writers do.
Type type_for(int64_t low, int64_t high) {
  if (low >= 0 && high <= std::numeric_limits<uint32_t>::max()) return Type::u32;
  if (low >= std::numeric_limits<int32_t>::min() && high <= std::numeric_limits<int32_t>::max())
    return Type::i32;
  return low >= 0 ? Type::u64 : Type::i64;
}

void put_integer(HeadWriter& out, Type type, int64_t value) {
  if (type == Type::u32 || type == Type::i32)
    out.number(static_cast<uint32_t>(value));
  else
    out.number(value);
}

void put_real(HeadWriter& out, Type type, double value) {
  if (type == Type::f32)
    out.number(static_cast<float>(value));
  else
    out.number(value);
}

void begin_array(HeadWriter& out, Type type, size_t count) {
  out.type(Type::array);
  out.type(type);
  out.number(uint64_t{count});
}

struct PutValue {
  HeadWriter& out;

  void operator()(bool value) const {
    out.type(Type::boolean);
    out.number(uint8_t{value});
  }
  void operator()(int64_t value) const {
    const Type type = type_for(value, value);
    out.type(type);
    put_integer(out, type, value);
  }
  void operator()(uint64_t value) const {
    out.type(Type::u64);
    out.number(value);
  }
  void operator()(double value) const {
    const Type type = survives_f32(value) ? Type::f32 : Type::f64;
    out.type(type);
    put_real(out, type, value);
  }
  void operator()(const std::string& value) const {
    out.type(Type::string);
    out.string(value);
  }
  void operator()(const std::vector<int64_t>& values) const {
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    const Type type = values.empty() ? Type::u32 : type_for(*low, *high);
    begin_array(out, type, values.size());
    for (int64_t value : values) put_integer(out, type, value);
  }
  void operator()(const std::vector<double>& values) const {
    const bool narrow = std::all_of(values.begin(), values.end(), survives_f32);
    const Type type = narrow ? Type::f32 : Type::f64;
    begin_array(out, type, values.size());
    for (double value : values) put_real(out, type, value);
  }
  void operator()(const std::vector<std::string>& values) const {
    begin_array(out, Type::string, values.size());
    for (const std::string& value : values) out.string(value);
  }
};

void put_tensor(HeadWriter& out, const std::string& path, const TensorSpec& tensor,
                uint64_t offset) {
  CHECK(tensor.name.size() <= kLongestName, "{}: tensor name {} is longer than {}", path,
        tensor.name, kLongestName);
  out.string(tensor.name);
  const int rank = tensor.shape.rank();
  out.number(static_cast<uint32_t>(std::max(rank, 1)));
  if (rank == 0) out.number(uint64_t{1});
  for (int i = rank; i-- > 0;) out.number(static_cast<uint64_t>(tensor.shape[i]));
  const auto* type = std::find_if(std::begin(kTensorTypes), std::end(kTensorTypes),
                                  [&](const StoredType& t) { return t.dtype == tensor.dtype; });
  CHECK(type != std::end(kTensorTypes), "{}: GGUF has no type for {}", path, tensor.dtype);
  out.number(type->code);
  out.number(offset);
}

}  // namespace

std::string gguf_head(const std::string& path, const Metadata& metadata,
                      const std::vector<TensorSpec>& tensors) {
  check_specs(path, tensors);
  Metadata pairs = metadata;
  if (std::any_of(tensors.begin(), tensors.end(),
                  [](const TensorSpec& t) { return t.dtype == Dtype::q8_0; }))
    pairs.set(std::string(kQuantisationKey), int64_t{2});
  const uint64_t alignment = alignment_of(path, pairs);
  HeadWriter out;
  out.number(std::array{'G', 'G', 'U', 'F'});
  out.number(uint32_t{3});
  out.number(uint64_t{tensors.size()});
  out.number(uint64_t{pairs.entries().size()});
  for (const auto& [key, value] : pairs.entries()) {
    out.string(key);
    std::visit(PutValue{out}, value);
  }
  uint64_t end = 0;
  for (const TensorSpec& tensor : tensors) {
    put_tensor(out, path, tensor, end);
    CHECK(add_padded(static_cast<uint64_t>(bytes_of(tensor.dtype, tensor.shape.count())), alignment,
                     end),
          "{}: tensor {} is too large", path, tensor.name);
  }
  out.pad(alignment);
  return out.take();
}

TensorWriter create_gguf(const std::string& path, const Metadata& metadata,
                         std::vector<TensorSpec> tensors, Existing existing) {
  const std::string head = gguf_head(path, metadata, tensors);
  const uint64_t alignment = alignment_of(path, metadata);
  uint64_t end = head.size();
  for (const TensorSpec& tensor : tensors)
    add_padded(static_cast<uint64_t>(bytes_of(tensor.dtype, tensor.shape.count())), alignment, end);
  OutputFile file(path, existing);
  file.expect(end);
  file.write(head);
  return TensorWriter(std::move(file), std::move(tensors), alignment);
}

}  // namespace sft
