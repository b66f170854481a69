#include "engine/formats/safetensors.h"

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>

#include "engine/check.h"
#include "engine/formats/byte_reader.h"
#include "engine/formats/torch_file.h"
#include "engine/io/directory.h"

namespace sft {

namespace {

using nlohmann::json;

constexpr uint64_t kLargestHead = 32'000'000;
constexpr int kDeepest = 32;  // levels of JSON
constexpr size_t kMostShards = 1000;
constexpr std::string_view kMetadataKey = "__metadata__";

struct StoredType {
  std::string_view name;
  Dtype dtype;
};
constexpr StoredType kTypes[] = {
    {"F64", Dtype::f64}, {"F32", Dtype::f32},      {"F16", Dtype::f16}, {"BF16", Dtype::bf16},
    {"I64", Dtype::i64}, {"I32", Dtype::i32},      {"I16", Dtype::i16}, {"I8", Dtype::i8},
    {"U8", Dtype::u8},   {"BOOL", Dtype::boolean},
};

// ---- reading

// What hostile JSON may do: the parser keeps no stack of its own beyond one bit a level, and these
// handlers accept nothing but the few shapes they know.
class Handler : public nlohmann::json_sax<json> {
 public:
  explicit Handler(std::string path) : path_(std::move(path)) {}

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("true or false"); }
  bool number_integer(number_integer_t value) override { unexpected(fmt::format("{}", value)); }
  bool number_unsigned(number_unsigned_t value) override { unexpected(fmt::format("{}", value)); }
  bool number_float(number_float_t, const string_t& text) override { unexpected(text); }
  bool string(string_t& text) override { unexpected(text); }
  bool binary(binary_t&) override { unexpected("binary data"); }
  bool start_array(size_t) override { unexpected("["); }
  bool end_array() override { return true; }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    fail(Kind::input, "{}: no valid JSON at byte {} of its head", printable(path_), position);
  }

 protected:
  [[noreturn]] void unexpected(std::string_view what) const {
    fail(Kind::input, "{}: head: unexpected {} in \"{}\"", printable(path_), printable(what),
         printable(where_));
  }

  std::string path_;
  std::string where_;  // the last name at the top level
};

// The head of one file. Levels: 1 names, 2 fields of a tensor or of __metadata__, 3 lists.
class HeadHandler : public Handler {
 public:
  HeadHandler(std::string path, TensorTable& table) : Handler(std::move(path)), table_(table) {}

  bool start_object(size_t) override {
    if (level_ > 1 || list_) unexpected("{");
    ++level_;
    tensor_ = {};
    dtype_.reset();
    shape_.reset();
    offsets_.reset();
    return true;
  }
  bool end_object() override {
    if (--level_ == 1 && where_ != kMetadataKey) add_tensor();
    return true;
  }
  bool key(string_t& name) override {
    if (level_ == 1) {
      where_ = name;
      check_name(path_, "tensor name", name);
      if (!names_.insert(name).second) unexpected("second entry");
    } else if (where_ == kMetadataKey && table_.metadata.has(name)) {
      unexpected("second " + name);
    }
    field_ = name;
    return true;
  }
  bool string(string_t& text) override {
    if (level_ == 2 && where_ == kMetadataKey) {
      table_.metadata.set(field_, text);
      return true;
    }
    if (level_ != 2 || list_ || field_ != "dtype" || dtype_) unexpected(text);
    const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                    [&](const StoredType& t) { return t.name == text; });
    if (type == std::end(kTypes)) unexpected("dtype " + text);
    dtype_ = type->dtype;
    return true;
  }
  bool start_array(size_t) override {
    if (level_ != 2 || list_ || where_ == kMetadataKey) unexpected("[");
    auto& list = field_ == "shape" ? shape_ : offsets_;
    if ((field_ != "shape" && field_ != "data_offsets") || list) unexpected(field_);
    list_ = &list.emplace();
    return true;
  }
  bool end_array() override {
    list_ = nullptr;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (!list_ || value > std::numeric_limits<int64_t>::max()) unexpected(fmt::format("{}", value));
    if (list_->size() == Shape::kMaxRank) unexpected("more than 4 dimensions");
    list_->push_back(static_cast<int64_t>(value));
    return true;
  }

 private:
  void add_tensor() {
    if (!dtype_ || !shape_ || !offsets_ || offsets_->size() != 2)
      unexpected("lack of dtype, shape or two data_offsets");
    const int64_t begin = offsets_->front(), end = offsets_->back();
    uint64_t bytes = static_cast<uint64_t>(bytes_of(*dtype_, 1));
    for (int64_t dim : *shape_)
      if (!checked_mul(bytes, static_cast<uint64_t>(dim), bytes) ||
          bytes > std::numeric_limits<int64_t>::max())
        unexpected("size above 2^63 bytes");
    tensor_.name = where_;
    tensor_.shape = Shape(std::span<const int64_t>(*shape_));
    tensor_.dtype = *dtype_;
    tensor_.offset = static_cast<uint64_t>(begin);
    tensor_.bytes = bytes;
    if (end < begin || static_cast<uint64_t>(end - begin) != bytes)
      fail(Kind::input, "{}: tensor {}: data_offsets [{}, {}] for {} {} (expected {} bytes)",
           printable(path_), where_, begin, end, *dtype_, tensor_.shape, bytes);
    table_.tensors.push_back(std::move(tensor_));
  }

  TensorTable& table_;
  int level_ = 0;
  std::string field_;
  TensorInfo tensor_;
  std::optional<Dtype> dtype_;
  std::optional<std::vector<int64_t>> shape_, offsets_;
  std::vector<int64_t>* list_ = nullptr;  // the one being read
  std::unordered_set<std::string> names_;
};

// Sorts by place and checks that the tensors cover all of [start, start + data), each byte once.
void place_tensors(const std::string& path, uint64_t start, uint64_t data,
                   std::vector<TensorInfo>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  uint64_t end = 0;
  for (TensorInfo& tensor : tensors) {
    if (tensor.offset != end)
      fail(Kind::input,
           "{}: tensor {} begins at {} of the data (expected {}: no holes, no overlaps)",
           printable(path), tensor.name, tensor.offset, end);
    if (tensor.bytes > data - end)
      fail(Kind::input, "{}: tensor {} ends past the end of the file (is it cut off?)",
           printable(path), tensor.name);
    end += tensor.bytes;
    tensor.offset += start;
  }
  if (end != data)
    fail(Kind::input, "{}: {} bytes follow the last tensor", printable(path), data - end);
}

// A zip archive is known by its end: a record of 22 bytes and a comment reaching the last byte.
bool ends_as_zip(const InputFile& file) {
  constexpr uint64_t kRecord = 22, kLongestComment = 65535;
  std::string tail(std::min(file.size(), kRecord + kLongestComment), '\0');
  file.read_at(file.size() - tail.size(), std::as_writable_bytes(std::span(tail)));
  for (size_t at = 0; (at = tail.find("PK\x05\x06", at)) != std::string::npos; ++at) {
    if (tail.size() - at < kRecord) return false;
    const size_t comment = static_cast<uint8_t>(tail[at + 20]) | static_cast<uint8_t>(tail[at + 21])
                                                                     << 8;
    if (at + kRecord + comment == tail.size()) return true;
  }
  return false;
}

struct OpenedFile {
  InputFile file;
  TensorTable table;
};

OpenedFile open_one(const std::string& path) {
  InputFile file(path);
  std::vector<std::byte> start;
  for (uint64_t wanted = 8;;) {
    start.resize(std::min(file.size(), wanted));
    file.read_at(0, start);
    try {
      TensorTable table = parse_safetensors(path, start, file.size());
      if (ends_as_zip(file))
        fail(Kind::input, "{}: is a safetensors file and a zip archive in one", printable(path));
      return {std::move(file), std::move(table)};
    } catch (const NeedMoreBytes& need) {
      wanted = need.bytes;
    }
  }
}

// A shard is a safetensors file, or a state dict of PyTorch.
OpenedFile open_shard(const std::string& path) {
  InputFile file(path);
  std::array<char, 4> start{};
  const size_t known = std::min<uint64_t>(file.size(), start.size());
  file.read_at(0, std::as_writable_bytes(std::span(start).first(known)));
  if (starts_as_torch({start.data(), known})) return {std::move(file), read_torch_table(path)};
  return open_one(path);
}

// The index of a model in shards: {"weight_map": {tensor: file}, anything else ignored}.
class IndexHandler : public Handler {
 public:
  explicit IndexHandler(std::string path) : Handler(std::move(path)) {}

  std::map<std::string, std::string> files;  // tensor -> file

  bool null() override { return ignore("null"); }
  bool boolean(bool) override { return ignore("true or false"); }
  bool number_integer(number_integer_t) override { return ignore("number"); }
  bool number_unsigned(number_unsigned_t) override { return ignore("number"); }
  bool number_float(number_float_t, const string_t&) override { return ignore("number"); }
  bool start_array(size_t) override { return ignore("list") && enter(); }
  bool end_array() override { return leave(); }
  bool start_object(size_t) override {
    if (level_ > 1) ignore("object");
    return enter();
  }
  bool end_object() override { return leave(); }
  bool key(string_t& name) override {
    if (level_ == 1) where_ = name;
    if (level_ == 2) field_ = name;
    return true;
  }
  bool string(string_t& text) override {
    if (where_ != kMap) return true;
    if (level_ != 2) unexpected(text);
    check_name(path_, "tensor name", field_);
    check_name(path_, "file name", text);
    if (text.find_first_of("/\\") != std::string::npos) unexpected("path " + text);
    if (!files.emplace(field_, text).second) unexpected("second " + field_);
    return true;
  }

 private:
  static constexpr std::string_view kMap = "weight_map";
  bool ignore(std::string_view what) const {
    if (where_ == kMap) unexpected(what);
    return true;
  }
  bool enter() {
    if (++level_ > kDeepest) unexpected("depth");
    return true;
  }
  bool leave() {
    --level_;
    return true;
  }

  int level_ = 0;
  std::string field_;
};

// Adds the tensors of shard number `shard`; each must be in the index under this file.
void add_shard(const std::string& index_path, const IndexHandler& index, const std::string& name,
               int shard, std::vector<TensorInfo> tensors, TensorTable& table) {
  for (TensorInfo& tensor : tensors) {
    const auto where = index.files.find(tensor.name);
    if (where == index.files.end() || where->second != name)
      fail(Kind::input, "{}: tensor {} is in {}, against the index", printable(index_path),
           tensor.name, name);
    tensor.shard = shard;
    table.tensors.push_back(std::move(tensor));
  }
}

}  // namespace

TensorTable parse_safetensors(const std::string& path, std::span<const std::byte> start,
                              uint64_t file_size) {
  ByteReader in(printable(path), start, file_size);
  const uint64_t length = in.u64("length of the head");
  if (length > kLargestHead) in.bad("head", "is {} bytes long (at most {})", length, kLargestHead);
  const std::string_view head = in.string(length, kLargestHead, "head");
  if (!head.starts_with('{')) in.bad("head", "does not start with {{");
  TensorTable table{Metadata(path), {}};
  HeadHandler handler(path, table);
  json::sax_parse(head.begin(), head.end(), &handler);
  place_tensors(path, in.offset(), in.remaining(), table.tensors);
  return table;
}

TensorFile open_safetensors(const std::string& path) {
  OpenedFile opened = open_one(path);
  std::vector<InputFile> files;
  files.push_back(std::move(opened.file));
  return TensorFile(path, std::move(opened.table), std::move(files));
}

TensorFile open_sharded(const std::string& index_path) {
  const std::string index_text = read_text(index_path, kLargestHead);
  IndexHandler index(index_path);
  json::sax_parse(index_text, &index);
  std::map<std::string, int> shards;
  for (const auto& [tensor, file] : index.files) shards.emplace(file, 0);
  if (shards.empty() || shards.size() > kMostShards)
    fail(Kind::input, "{}: its weight_map names {} files (expected 1 to {})", printable(index_path),
         shards.size(), kMostShards);
  TensorTable table{Metadata(index_path), {}};
  std::vector<InputFile> files;
  for (const auto& [name, unused] : shards) {
    OpenedFile opened = open_shard(parent_directory(index_path) + "/" + name);
    if (files.empty()) table.metadata = opened.table.metadata;
    add_shard(index_path, index, name, static_cast<int>(files.size()),
              std::move(opened.table.tensors), table);
    files.push_back(std::move(opened.file));
  }
  if (table.tensors.size() != index.files.size())
    fail(Kind::input, "{}: names {} tensors, its files hold {}", printable(index_path),
         index.files.size(), table.tensors.size());
  return TensorFile(index_path, std::move(table), std::move(files));
}

// ---- writing

namespace {

std::string quoted(const std::string& text) {
  return json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string_view stored_name(const std::string& path, Dtype dtype) {
  const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                  [&](const StoredType& t) { return t.dtype == dtype; });
  CHECK(type != std::end(kTypes), "{}: safetensors has no type for {}", path, dtype);
  return type->name;
}

std::string metadata_text(const Metadata& strings) {
  Metadata all;
  all.set("format", "pt");
  for (const auto& [key, value] : strings.entries()) all.set(key, value);
  std::string out;
  for (const auto& [key, value] : all.entries())
    out += fmt::format("{}{}:{}", out.empty() ? "" : ",", quoted(key), quoted(all.string(key)));
  return out;
}

std::string shape_text(const Shape& shape) {
  std::string out;
  for (int64_t dim : shape.dims()) out += fmt::format("{}{}", out.empty() ? "" : ",", dim);
  return out;
}

}  // namespace

std::string safetensors_head(const std::string& path, const Metadata& strings,
                             const std::vector<TensorSpec>& tensors) {
  check_specs(path, tensors);
  std::string head = fmt::format("{{\"{}\":{{{}}}", kMetadataKey, metadata_text(strings));
  int64_t end = 0;
  for (const TensorSpec& tensor : tensors) {
    const int64_t begin = end;
    end += bytes_of(tensor.dtype, tensor.shape.count());
    head += fmt::format(",{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                        quoted(tensor.name), stored_name(path, tensor.dtype),
                        shape_text(tensor.shape), begin, end);
  }
  head += '}';
  head.resize((head.size() + 7) / 8 * 8, ' ');
  const uint64_t length = head.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + head;
}

TensorWriter create_safetensors(const std::string& path, const Metadata& strings,
                                std::vector<TensorSpec> tensors, Existing existing) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorSpec& a, const TensorSpec& b) {
    const int64_t size_a = bytes_of(a.dtype, 1), size_b = bytes_of(b.dtype, 1);
    return size_a != size_b ? size_a > size_b : a.name < b.name;
  });
  const std::string head = safetensors_head(path, strings, tensors);
  uint64_t end = head.size();
  for (const TensorSpec& tensor : tensors)
    end += static_cast<uint64_t>(bytes_of(tensor.dtype, tensor.shape.count()));
  OutputFile file(path, existing);
  file.expect(end);
  file.write(head);
  return TensorWriter(std::move(file), std::move(tensors), 1);
}

}  // namespace sft
