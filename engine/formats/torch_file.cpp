#include "engine/formats/torch_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <optional>

#include "engine/check.h"
#include "engine/formats/byte_reader.h"
#include "engine/formats/zip.h"

namespace sft {

namespace {

using std::string_view_literals::operator""sv;

constexpr std::string_view kZip = "PK\x03\x04";
// The pickle of 0x1950a86a20f9469cfc6c, with which the older layout begins.
constexpr std::string_view kMagic =
    "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"sv;
// The sum over as many bytes alone takes most of the 100 ms in which a hostile file must be
// refused; a tensor takes some 150 bytes of a pickle.
constexpr uint64_t kLargestPickle = 64 << 20;
constexpr int64_t kLegacyVersion = 1001;

struct NamedType {
  std::string_view name;  // of a storage, without "Storage"; of a dtype
  std::string_view dtype_name;
  Dtype dtype;
};
constexpr NamedType kTypes[] = {
    {"Float", "float32", Dtype::f32}, {"Double", "float64", Dtype::f64},
    {"Half", "float16", Dtype::f16},  {"BFloat16", "bfloat16", Dtype::bf16},
    {"Long", "int64", Dtype::i64},    {"Int", "int32", Dtype::i32},
    {"Short", "int16", Dtype::i16},   {"Char", "int8", Dtype::i8},
    {"Byte", "uint8", Dtype::u8},     {"Bool", "bool", Dtype::boolean},
    {"Untyped", "", Dtype::u8},
};

std::optional<Dtype> storage_type(PickleValue symbol) {
  constexpr std::string_view kEnding = "Storage";
  std::string_view name = symbol.name();
  if (!symbol.module().starts_with("torch") || !name.ends_with(kEnding)) return {};
  name.remove_suffix(kEnding.size());
  for (const NamedType& type : kTypes)
    if (type.name == name) return type.dtype;
  return {};
}

// What a persistent id says of a storage: ("storage", type, key, device, count, view of it or None)
struct StorageId {
  Dtype dtype = Dtype::f32;
  bool untyped = false;
  std::string key;
  uint64_t count = 0;                  // elements of the whole storage
  uint64_t first = 0, view_count = 0;  // the part of it that is meant
};

struct Where {
  std::string_view path;
  std::string_view tensor;
  uint64_t offset;
  template <class... Args>
  [[noreturn]] void bad(std::string_view what, fmt::format_string<Args...> format,
                        Args&&... args) const {
    fail(Kind::input, "{}: tensor {}: {} at offset {} {}", printable(path), printable(tensor), what,
         offset, fmt::format(format, std::forward<Args>(args)...));
  }
  uint64_t size(PickleValue value, std::string_view what) const {
    const auto number = value.integer();
    if (!number || value.is(PickleType::boolean)) bad(what, "is no integer");
    if (*number < 0) bad(what, "is {} (expected at least 0)", *number);
    return static_cast<uint64_t>(*number);
  }
};

StorageId storage_id(PickleValue persistent, const Where& where) {
  const PickleValue id = persistent.id();
  if (!id.is(PickleType::tuple) || id.size() < 5 || id.size() > 6 || id[0].text() != "storage")
    where.bad("persistent id", "is not a storage of five or six fields");
  const std::optional<Dtype> dtype = storage_type(id[1]);
  if (!dtype)
    where.bad("storage type", "is {}.{} (expected torch.FloatStorage, ...)",
              printable(id[1].module(), 60), printable(id[1].name(), 60));
  StorageId s{*dtype, id[1].name() == "UntypedStorage", std::string(id[2].text())};
  if (s.key.empty()) where.bad("storage key", "is no text");
  s.count = s.view_count = where.size(id[4], "storage size");
  if (id.size() == 5 || id[5].is(PickleType::none)) return s;
  if (!id[5].is(PickleType::tuple) || id[5].size() != 3)
    where.bad("storage view", "is not of three fields");
  s.first = where.size(id[5][1], "offset of the storage view");
  s.view_count = where.size(id[5][2], "size of the storage view");
  if (s.first > s.count || s.view_count > s.count - s.first)
    where.bad("storage view", "is [{}, +{}) of {}", s.first, s.view_count, s.count);
  return s;
}

}  // namespace

bool starts_as_torch(std::string_view start) {
  return start.starts_with(kZip) || start.starts_with(kMagic.substr(0, 2));
}

// ---- containers

TorchFile::TorchFile(const std::string& path)
    : path_(path),
      mapped_(std::make_unique<InputFile>(path)),
      bytes_(mapped_->map(Advice::random)) {
  read();
}

TorchFile::TorchFile(const std::string& path, std::span<const std::byte> bytes)
    : path_(path), bytes_(bytes) {
  read();
}

void TorchFile::read() {
  const std::string_view start(reinterpret_cast<const char*>(bytes_.data()),
                               std::min(bytes_.size(), kMagic.size()));
  if (start.starts_with(kZip))
    read_zip();
  else if (start == kMagic)
    read_legacy();
  else
    fail(Kind::input,
         "{}: is no file of torch.save (at offset 0, expected a zip archive, or the pickle of "
         "0x1950a86a20f9469cfc6c)",
         printable(path_));
}

void TorchFile::read_zip() {
  constexpr std::string_view kRoot = "/data.pkl", kData = "/data/", kOrder = "/byteorder";
  const std::vector<ZipEntry> entries = parse_zip(path_, bytes_);
  const ZipEntry* root = nullptr;
  for (const ZipEntry& entry : entries)
    if (entry.name.ends_with(kRoot) && entry.name.find('/') == entry.name.size() - kRoot.size()) {
      if (root) fail(Kind::input, "{}: two entries {}", printable(path_), kRoot.substr(1));
      root = &entry;
    }
  if (!root)
    fail(Kind::input, "{}: a zip archive without data.pkl (expected a file of torch.save)",
         printable(path_));
  const std::string folder = root->name.substr(0, root->name.size() - kRoot.size());
  const auto content = [&](const ZipEntry& entry) {
    const auto bytes = bytes_.subspan(entry.offset, entry.bytes);
    if (entry.crc != 0 && crc32(bytes) != entry.crc)
      fail(Kind::input, "{}: {} at offset {} has CRC-32 {:08x} (expected {:08x})", printable(path_),
           printable(entry.name), entry.offset, crc32(bytes), entry.crc);
    return bytes;
  };
  if (root->bytes > kLargestPickle)
    fail(Kind::input, "{}: data.pkl at offset {} is {} bytes long (at most {})", printable(path_),
         root->offset, root->bytes, kLargestPickle);
  for (const ZipEntry& entry : entries) {
    const std::string_view name = entry.name;
    if (!name.starts_with(folder)) continue;
    const std::string_view inside = name.substr(folder.size());
    if (inside == "/constants.pkl")
      fail(Kind::input, "{}: is a TorchScript program (expected a file of torch.save)",
           printable(path_));
    if (inside == kOrder) {
      const auto order = content(entry);
      if (std::string_view(reinterpret_cast<const char*>(order.data()), order.size()) != "little")
        fail(Kind::input, "{}: byteorder at offset {} is not little", printable(path_),
             entry.offset);
    }
    if (inside.starts_with(kData))
      storages_[entry.name.substr(folder.size() + kData.size())] = {entry.offset, entry.bytes,
                                                                    entry.crc};
  }
  content(*root);
  ByteReader in(printable(path_), bytes_.first(root->offset + root->bytes));
  in.skip(root->offset, "data.pkl");
  pickle_ = std::make_unique<Pickle>(in);
  if (in.remaining() > 0) in.bad("data.pkl", "has {} bytes after its end", in.remaining());
}

void TorchFile::read_legacy() {
  ByteReader in(printable(path_), bytes_);
  in.skip(kMagic.size(), "magic number");
  const Pickle version(in);
  if (version.root().integer() != kLegacyVersion)
    in.bad("protocol version", "is not {}", kLegacyVersion);
  const Pickle system(in);
  const auto little = system.root().find("little_endian");
  if (!little || little->integer() != 1) in.bad("little_endian", "before this is not true");
  pickle_ = std::make_unique<Pickle>(in);
  const Pickle keys(in);
  place_legacy(in, keys.root());
}

// The storages, each behind its number of elements.
void TorchFile::place_legacy(ByteReader& in, PickleValue keys) {
  std::unordered_map<std::string, StorageId> ids;
  for (const PickleValue id : pickle_->persistent_ids()) {
    if (id.id().size() > 0 && id.id()[0].text() == "module") continue;  // old; its source follows
    StorageId s = storage_id(id, {path_, "of any name", id.offset()});
    ids.emplace(s.key, std::move(s));
  }
  if (!keys.is(PickleType::list)) in.bad("storage keys", "before this are not a list");
  in.expect_records(keys.size(), sizeof(int64_t), "number of storages");
  for (size_t i = 0; i < keys.size(); ++i) {
    const std::string key(keys[i].text());
    const auto id = ids.find(key);
    if (id == ids.end()) in.bad("storage", "{} is not one that the file uses", printable(key, 40));
    const uint64_t count = in.u64("number of elements");
    if (count != id->second.count)
      in.bad("number of elements", "before this is {} (expected {})", count, id->second.count);
    const auto size = static_cast<uint64_t>(bytes_of(id->second.dtype, 1));
    in.expect_records(count, size, "number of elements");
    if (!storages_.emplace(key, Storage{in.offset(), count * size, 0}).second)
      in.bad("storage", "{} comes twice", printable(key, 40));
    in.skip(count * size, "storage");
  }
  if (in.remaining() > 0) in.bad("file", "has {} bytes after its end", in.remaining());
}

// ---- tensors

namespace {

struct Call {
  PickleValue function, arguments;
};

// What makes a tensor, whatever it is wrapped in.
std::optional<Call> tensor_call(PickleValue value) {
  constexpr int kDeepest = 8;  // a Parameter of a tensor
  constexpr std::string_view kWrappers[] = {"_rebuild_parameter", "_rebuild_parameter_with_state",
                                            "Parameter"};
  for (int depth = 0; depth < kDeepest && value.is(PickleType::object); ++depth) {
    Call call{value.maker(), value.arguments()};
    if (!call.arguments.is(PickleType::tuple) || call.arguments.size() == 0) return {};
    if (call.function.is_global("torch._tensor", "_rebuild_from_type_v2") &&
        call.arguments.size() >= 3)
      call = {call.arguments[0], call.arguments[2]};
    if (!call.function.module().starts_with("torch")) return {};
    const std::string_view name = call.function.name();
    if (call.function.module() == "torch._utils" && name.starts_with("_rebuild_tensor"))
      return call;
    if (std::find(std::begin(kWrappers), std::end(kWrappers), name) == std::end(kWrappers))
      return {};
    value = call.arguments[0];
  }
  return {};
}

struct Extent {
  Shape shape;
  std::vector<int64_t> strides;  // empty: dense
  uint64_t count = 0;            // elements
  uint64_t span = 0;             // from the first to behind the last, in elements
};

Extent extent(PickleValue sizes, PickleValue strides, const Where& where) {
  if (!sizes.is(PickleType::tuple) || !strides.is(PickleType::tuple) ||
      sizes.size() != strides.size())
    where.bad("size", "and stride are not tuples of one length");
  if (sizes.size() > Shape::kMaxRank)
    where.bad("size", "has {} dimensions (at most {})", sizes.size(), Shape::kMaxRank);
  Extent e{.count = 1};
  std::vector<int64_t> dims;
  bool dense = true;
  for (size_t d = sizes.size(); d-- > 0;) {
    const uint64_t size = where.size(sizes[d], "size"), stride = where.size(strides[d], "stride");
    dense = dense && (size == 1 || stride == e.count);
    if (!checked_mul(e.count, size, e.count) || e.count > INT64_MAX / 16)
      where.bad("size", "is above 2^63 bytes");
    uint64_t reach;
    if (size > 0 && (!checked_mul(size - 1, stride, reach) || !checked_add(e.span, reach, e.span)))
      where.bad("stride", "reaches past 2^64");
    dims.insert(dims.begin(), static_cast<int64_t>(size));
    e.strides.insert(e.strides.begin(), static_cast<int64_t>(stride));
  }
  e.span = e.count == 0 ? 0 : e.span + 1;
  if (dense || e.count == 0) e.strides.clear();
  e.shape = Shape(std::span<const int64_t>(dims));
  return e;
}

Dtype dtype_of_global(PickleValue symbol, const Where& where) {
  for (const NamedType& type : kTypes)
    if (symbol.is_global("torch", type.dtype_name)) return type.dtype;
  where.bad("dtype", "is {}.{} (expected torch.float32, ...)", printable(symbol.module(), 60),
            printable(symbol.name(), 60));
}

}  // namespace

bool TorchFile::is_tensor(PickleValue value) { return tensor_call(value).has_value(); }

// The part of the file that a persistent id means.
struct TorchFile::View {
  StorageId id;
  uint64_t offset = 0, bytes = 0;
};

TorchFile::View TorchFile::view_of(PickleValue persistent, const std::string& name) const {
  const Where where{path_, name, persistent.is(PickleType::persistent) ? persistent.offset() : 0};
  if (!persistent.is(PickleType::persistent)) where.bad("storage", "is no persistent id");
  StorageId id = storage_id(persistent, where);
  const auto place = storages_.find(id.key);
  if (place == storages_.end())
    where.bad("storage", "{} is not in the file", printable(id.key, 40));
  const auto size = static_cast<uint64_t>(bytes_of(id.dtype, 1));
  uint64_t bytes;
  if (!checked_mul(id.count, size, bytes) || bytes > place->second.bytes)
    where.bad("storage", "of {} {} has {} bytes", id.count, id.dtype, place->second.bytes);
  return {id, place->second.offset + id.first * size, id.view_count * size};
}

TensorInfo TorchFile::tensor(PickleValue value, std::string name) const {
  const std::optional<Call> call = tensor_call(value);
  CHECK(call, "{}: {} is no tensor", path_, name);
  const Where where{path_, name, value.offset()};
  const PickleValue arguments = call->arguments;
  const bool with_dtype = call->function.name() == "_rebuild_tensor_v3";
  if (arguments.size() < (with_dtype ? 7 : 4))
    where.bad("tensor", "is made of {} arguments", arguments.size());
  const View storage = view_of(arguments[0], name);
  if (storage.id.untyped && !with_dtype) where.bad("storage", "has no type");
  const Dtype dtype = with_dtype ? dtype_of_global(arguments[6], where) : storage.id.dtype;
  const uint64_t first = where.size(arguments[1], "storage offset");
  const Extent e = extent(arguments[2], arguments[3], where);
  const auto size = static_cast<uint64_t>(bytes_of(dtype, 1));
  const uint64_t room = storage.bytes / size;
  if (first > room || e.span > room - first)
    where.bad("tensor", "reaches from {} over {} elements of a storage of {}", first, e.span, room);
  if (e.count > std::max<uint64_t>(room, 1 << 20))
    where.bad("size", "repeats {} elements to {}", room, e.count);
  return {.name = std::move(name),
          .shape = e.shape,
          .dtype = dtype,
          .offset = storage.offset + first * size,
          .bytes = e.count * size,
          .strides = e.strides};
}

void TorchFile::check_sums(const std::vector<TensorInfo>& tensors) const {
  std::map<uint64_t, const Storage*> by_offset;
  for (const auto& [key, storage] : storages_)
    if (storage.bytes > 0) by_offset[storage.offset] = &storage;
  std::map<uint64_t, const Storage*> used;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.bytes == 0) continue;
    const auto& [offset, storage] = *std::prev(by_offset.upper_bound(tensor.offset));
    if (storage->crc != 0) used[offset] = storage;
  }
  const std::vector<std::pair<uint64_t, const Storage*>> list(used.begin(), used.end());
  std::vector<uint32_t> sums(list.size());
#pragma omp parallel for schedule(dynamic)
  for (size_t i = 0; i < list.size(); ++i)
    sums[i] = crc32(bytes_.subspan(list[i].first, list[i].second->bytes));
  for (size_t i = 0; i < list.size(); ++i)
    if (sums[i] != list[i].second->crc)
      fail(Kind::input, "{}: storage at offset {} has CRC-32 {:08x} (expected {:08x})",
           printable(path_), list[i].first, sums[i], list[i].second->crc);
}

TensorTable TorchFile::table(std::vector<TensorInfo> tensors) const {
  std::unordered_map<std::string_view, int> names;
  for (const TensorInfo& tensor : tensors) {
    check_name(path_, "tensor name", tensor.name);
    if (names[tensor.name]++)
      fail(Kind::input, "{}: tensor {} comes twice", printable(path_), tensor.name);
  }
  check_sums(tensors);
  return {Metadata(path_), std::move(tensors)};
}

TensorFile TorchFile::file(std::vector<TensorInfo> tensors) const {
  std::vector<InputFile> files;
  files.emplace_back(path_);
  files.back().map(Advice::sequential);
  return TensorFile(path_, table(std::move(tensors)), std::move(files));
}

TensorTable read_torch_table(const std::string& path) {
  const TorchFile file(path);
  const PickleValue root = file.root();
  std::vector<TensorInfo> tensors;
  for (size_t i = 0; root.is(PickleType::dict) && i + 1 < root.size(); i += 2)
    if (TorchFile::is_tensor(root[i + 1]))
      tensors.push_back(file.tensor(root[i + 1], std::string(root[i].text())));
  if (tensors.empty())
    fail(Kind::input, "{}: holds no tensors under names of their own", printable(path));
  return file.table(std::move(tensors));
}

TensorFile open_torch_tensors(const std::string& path) {
  TensorTable table = read_torch_table(path);
  std::vector<InputFile> files;
  files.emplace_back(path);
  return TensorFile(path, std::move(table), std::move(files));
}

// ---- writing

TorchTree TorchTree::none() { return {}; }

TorchTree TorchTree::boolean(bool value) {
  TorchTree t;
  t.kind_ = Kind::boolean, t.integer_ = value;
  return t;
}

TorchTree TorchTree::integer(int64_t value) {
  TorchTree t;
  t.kind_ = Kind::integer, t.integer_ = value;
  return t;
}

TorchTree TorchTree::real(double value) {
  TorchTree t;
  t.kind_ = Kind::real, t.real_ = value;
  return t;
}

TorchTree TorchTree::text(std::string value) {
  TorchTree t;
  t.kind_ = Kind::text, t.text_ = std::move(value);
  return t;
}

TorchTree TorchTree::list(std::vector<TorchTree> items) {
  TorchTree t;
  t.kind_ = Kind::list, t.items_ = std::move(items);
  return t;
}

TorchTree TorchTree::dict(std::vector<std::pair<std::string, TorchTree>> items) {
  TorchTree t;
  t.kind_ = Kind::dict;
  for (auto& [key, value] : items) {
    t.keys_.push_back(std::move(key));
    t.items_.push_back(std::move(value));
  }
  return t;
}

TorchTree TorchTree::tensors(std::vector<std::pair<std::string, TorchTree>> others) {
  TorchTree t = dict(std::move(others));
  t.kind_ = Kind::tensors;
  return t;
}

// Protocol 2, without memo.
class PickleWriter {
 public:
  PickleWriter(const std::string& path, const std::vector<TensorSpec>& tensors)
      : path_(path), tensors_(tensors) {}

  std::string pickle(const TorchTree& root) {
    out_ = "\x80\x02";
    put(root);
    CHECK(written_, "{}: no place for the tensors", path_);
    return out_ + '.';
  }

 private:
  template <class T>
  void raw(T value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void put_integer(int64_t value) {
    if (value >= INT32_MIN && value <= INT32_MAX) {
      out_ += 'J';
      return raw(static_cast<int32_t>(value));
    }
    out_ += "\x8a\x08";
    raw(value);
  }
  void put_text(std::string_view text) {
    out_ += 'X';
    raw(static_cast<uint32_t>(text.size()));
    out_ += text;
  }
  void put_tuple(std::span<const int64_t> values) {
    out_ += '(';
    for (int64_t value : values) put_integer(value);
    out_ += 't';
  }
  void put_global(std::string_view module, std::string_view name) {
    out_ += fmt::format("c{}\n{}\n", module, name);
  }
  void put_empty_ordered_dict() {
    put_global("collections", "OrderedDict");
    out_ += ")R";
  }
  void put(const TorchTree& t) {
    using Kind = TorchTree::Kind;
    switch (t.kind_) {
      case Kind::none:
        out_ += 'N';
        return;
      case Kind::boolean:
        out_ += t.integer_ ? '\x88' : '\x89';
        return;
      case Kind::integer:
        return put_integer(t.integer_);
      case Kind::real:
        out_ += 'G';
        return raw(__builtin_bswap64(std::bit_cast<uint64_t>(t.real_)));
      case Kind::text:
        return put_text(t.text_);
      case Kind::list:
        out_ += "](";
        for (const TorchTree& item : t.items_) put(item);
        out_ += 'e';
        return;
      case Kind::dict:
        out_ += "}(";
        put_items(t);
        out_ += 'u';
        return;
      case Kind::tensors:
        return put_tensors(t);
    }
  }
  void put_items(const TorchTree& t) {
    for (size_t i = 0; i < t.items_.size(); ++i) put_text(t.keys_[i]), put(t.items_[i]);
  }
  void put_tensors(const TorchTree& t) {
    CHECK(!written_, "{}: two places for the tensors", path_);
    written_ = true;
    put_empty_ordered_dict();
    out_ += '(';
    for (size_t i = 0; i < tensors_.size(); ++i) {
      put_text(tensors_[i].name);
      put_tensor(i);
    }
    put_items(t);
    out_ += 'u';
  }
  void put_tensor(size_t i) {
    const TensorSpec& spec = tensors_[i];
    const auto dims = spec.shape.dims();
    std::vector<int64_t> strides(dims.size());
    int64_t stride = 1;
    for (size_t d = dims.size(); d-- > 0; stride *= std::max<int64_t>(dims[d], 1))
      strides[d] = stride;
    const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                    [&](const NamedType& t) { return t.dtype == spec.dtype; });
    CHECK(type != std::end(kTypes), "{}: PyTorch has no type for {}", path_, spec.dtype);
    put_global("torch._utils", "_rebuild_tensor_v2");
    out_ += "((";
    put_text("storage");
    put_global("torch", fmt::format("{}Storage", type->name));
    put_text(fmt::format("{}", i));
    put_text("cpu");
    put_integer(spec.shape.count());
    out_ += "tQ";
    put_integer(0);
    put_tuple(dims);
    put_tuple(strides);
    out_ += '\x89';
    put_empty_ordered_dict();
    out_ += "tR";
  }

  const std::string& path_;
  const std::vector<TensorSpec>& tensors_;
  std::string out_;
  bool written_ = false;
};

TensorWriter create_torch(const std::string& path, const TorchTree& root,
                          std::vector<TensorSpec> tensors, Existing existing) {
  check_specs(path, tensors);
  const std::vector<std::pair<std::string, std::string>> texts = {
      {"archive/data.pkl", PickleWriter(path, tensors).pickle(root)},
      {"archive/byteorder", "little"},
      {"archive/version", "3\n"}};
  ZipLayout zip;
  for (const auto& [name, text] : texts)
    zip.add({name, text.size(), crc32(std::as_bytes(std::span(text.data(), text.size())))});
  std::vector<uint64_t> offsets;
  for (size_t i = 0; i < tensors.size(); ++i) {
    zip.add({fmt::format("archive/data/{}", i),
             static_cast<uint64_t>(bytes_of(tensors[i].dtype, tensors[i].shape.count())), 0});
    offsets.push_back(zip.offset(texts.size() + i));
  }
  OutputFile file(path, existing);
  file.expect(zip.end() + zip.directory().size());
  const auto seal = [zip, texts](OutputFile& to, std::span<const uint32_t> crcs) mutable {
    for (size_t i = 0; i < crcs.size(); ++i) zip.set_crc(texts.size() + i, crcs[i]);
    const auto write = [&](uint64_t offset, const std::string& bytes) {
      to.write_at(offset, std::as_bytes(std::span(bytes.data(), bytes.size())));
    };
    for (size_t i = 0; i < texts.size() + crcs.size(); ++i) {
      const std::string head = zip.head(i);
      write(zip.offset(i) - head.size(), head);
      if (i < texts.size()) write(zip.offset(i), texts[i].second);
    }
    write(zip.end(), zip.directory());
  };
  return TensorWriter(std::move(file), std::move(tensors), std::move(offsets), seal);
}

}  // namespace sft
