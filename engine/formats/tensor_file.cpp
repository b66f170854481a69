#include "engine/formats/tensor_file.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <unordered_set>

#include "engine/check.h"
#include "engine/formats/gguf.h"
#include "engine/formats/numbers.h"
#include "engine/formats/safetensors.h"
#include "engine/formats/torch_file.h"
#include "engine/formats/zip.h"

namespace sft {

namespace {

constexpr int64_t kChunk = 1 << 16;  // elements converted at a time; whole blocks of q8_0

bool leaves_its_folder(std::string_view name) {
  if (name.starts_with('/') || name.starts_with('\\')) return true;
  for (size_t at = 0; at <= name.size();) {
    const size_t end = std::min(name.find_first_of("/\\", at), name.size());
    if (name.substr(at, end - at) == "..") return true;
    at = end + 1;
  }
  return false;
}

uint64_t stored_bytes(const TensorSpec& tensor) {
  return static_cast<uint64_t>(bytes_of(tensor.dtype, tensor.shape.count()));
}

int64_t alignment_of(Dtype dtype) { return dtype == Dtype::q8_0 ? 2 : bytes_of(dtype, 1); }

// Elements of a strided tensor, in row-major order, from byte `first` of the dense one.
void gather(const TensorInfo& tensor, const std::byte* from, uint64_t first,
            std::span<std::byte> to) {
  const auto size = static_cast<uint64_t>(bytes_of(tensor.dtype, 1));
  CHECK(first % size == 0 && to.size() % size == 0, "{}: not whole elements", tensor.name);
  const auto dims = tensor.shape.dims();
  for (uint64_t at = 0; at < to.size(); at += size) {
    auto index = static_cast<int64_t>((first + at) / size);
    int64_t element = 0;
    for (size_t d = dims.size(); d-- > 0; index /= dims[d])
      element += index % dims[d] * tensor.strides[d];
    std::memcpy(to.data() + at, from + static_cast<uint64_t>(element) * size, size);
  }
}

}  // namespace

// ---- names

void check_name(const std::string& path, std::string_view what, std::string_view name) {
  if (name.empty()) fail(Kind::input, "{}: {} is empty", printable(path), what);
  if (printable(name, SIZE_MAX) != name)
    fail(Kind::input, "{}: {} \"{}\" is not printable UTF-8", printable(path), what,
         printable(name));
  if (leaves_its_folder(name))
    fail(Kind::input, "{}: {} \"{}\" looks like a path", printable(path), what, printable(name));
}

void check_specs(const std::string& path, const std::vector<TensorSpec>& tensors) {
  std::unordered_set<std::string_view> names;
  for (const TensorSpec& tensor : tensors) {
    check_name(path, "tensor name", tensor.name);
    CHECK(names.insert(tensor.name).second, "{}: two tensors {}", path, tensor.name);
    CHECK(tensor.dtype != Dtype::q8_0 || (tensor.shape.rank() > 0 && tensor.shape.back() % 32 == 0),
          "{}: tensor {} {} cannot be q8_0 (rows of a multiple of 32)", path, tensor.name,
          tensor.shape);
  }
}

// ---- TensorFile

TensorFile::TensorFile(std::string path, TensorTable table, std::vector<InputFile> files)
    : path_(std::move(path)), table_(std::move(table)), files_(std::move(files)) {
  for (size_t i = 0; i < table_.tensors.size(); ++i) index_.emplace(table_.tensors[i].name, i);
}

const TensorInfo* TensorFile::find(std::string_view name) const {
  const auto where = index_.find(name);
  return where == index_.end() ? nullptr : &table_.tensors[where->second];
}

const TensorInfo& TensorFile::at(std::string_view name) const {
  const TensorInfo* tensor = find(name);
  if (!tensor) fail(Kind::input, "{}: tensor {} is missing", printable(path_), name);
  return *tensor;
}

bool TensorFile::viewable(const TensorInfo& tensor) const {
  return tensor.strides.empty() &&
         tensor.offset % static_cast<uint64_t>(alignment_of(tensor.dtype)) == 0;
}

Tensor TensorFile::view(const TensorInfo& tensor) const {
  CHECK(viewable(tensor), "{}: tensor {} at offset {} is not aligned to {}", path_, tensor.name,
        tensor.offset, tensor.dtype);
  const std::span<const std::byte> bytes =
      files_[static_cast<size_t>(tensor.shard)].map().subspan(tensor.offset, tensor.bytes);
  return Tensor(const_cast<std::byte*>(bytes.data()), tensor.shape, tensor.dtype);
}

void TensorFile::read(const TensorInfo& tensor, std::span<std::byte> to, uint64_t first) const {
  CHECK(first <= tensor.bytes && to.size() <= tensor.bytes - first,
        "{}: tensor {} has {} bytes, wanted [{}, {})", path_, tensor.name, tensor.bytes, first,
        first + to.size());
  const InputFile& file = files_[static_cast<size_t>(tensor.shard)];
  if (tensor.strides.empty()) return file.read_at(tensor.offset + first, to);
  gather(tensor, file.map().data() + tensor.offset, first, to);
}

void TensorFile::read_f32(const TensorInfo& tensor, std::span<float> to) const {
  const int64_t count = tensor.shape.count();
  CHECK(static_cast<int64_t>(to.size()) == count, "{}: tensor {} has {} elements, wanted {}", path_,
        tensor.name, count, to.size());
  if (!is_real(tensor.dtype))
    fail(Kind::input, "{}: tensor {} holds {} (expected real numbers)", printable(path_),
         tensor.name, tensor.dtype);
  if (tensor.dtype == Dtype::f32) return read(tensor, std::as_writable_bytes(to));
  std::vector<std::byte> stored(
      static_cast<size_t>(bytes_of(tensor.dtype, std::min(count, kChunk))));
  for (int64_t first = 0; first < count; first += kChunk) {
    const int64_t n = std::min(kChunk, count - first);
    const auto piece = std::span(stored).first(static_cast<size_t>(bytes_of(tensor.dtype, n)));
    read(tensor, piece, static_cast<uint64_t>(bytes_of(tensor.dtype, first)));
    to_f32(tensor.dtype, piece.data(), to.data() + first, n);
  }
}

// ---- TensorWriter

TensorWriter::TensorWriter(OutputFile file, std::vector<TensorSpec> tensors, uint64_t alignment)
    : file_(std::move(file)),
      tensors_(std::move(tensors)),
      head_(file_.position()),
      end_(file_.position()) {
  for (const TensorSpec& tensor : tensors_) {
    offsets_.push_back(end_);
    end_ += stored_bytes(tensor);
    end_ += (alignment - end_ % alignment) % alignment;
  }
}

TensorWriter::TensorWriter(OutputFile file, std::vector<TensorSpec> tensors,
                           std::vector<uint64_t> offsets, Seal seal)
    : file_(std::move(file)),
      tensors_(std::move(tensors)),
      offsets_(std::move(offsets)),
      seal_(std::move(seal)) {}

// Bytes of a tensor, what was left of its padding behind its last.
void TensorWriter::put(size_t tensor, uint64_t first, std::span<const std::byte> piece) {
  const uint64_t bytes = stored_bytes(tensors_[tensor]), end = offsets_[tensor] + bytes;
  CHECK(first <= bytes && piece.size() <= bytes - first,
        "{}: tensor {} has {} bytes, given [{}, {})", file_.path(), tensors_[tensor].name, bytes,
        first, first + piece.size());
  file_.write_at(offsets_[tensor] + first, piece);
  std::atomic_ref(done_) += piece.size();
  if (seal_) {
    const Piece sum{tensor, first, piece.size(), crc32(piece)};
    const std::scoped_lock lock(*mutex_);
    pieces_.push_back(sum);
  } else if (first + piece.size() == bytes) {
    const uint64_t next = tensor + 1 < offsets_.size() ? offsets_[tensor + 1] : end_;
    if (next > end) file_.write_at(end, std::vector<std::byte>(next - end));
  }
}

void TensorWriter::append(std::span<const std::byte> piece) {
  CHECK(next_ < tensors_.size(), "{}: data after the last tensor", file_.path());
  put(next_, written_, piece);
  written_ += piece.size();
  if (written_ < stored_bytes(tensors_[next_])) return;
  ++next_;
  written_ = 0;
}

void TensorWriter::write(std::string_view name, const Tensor& tensor) {
  CHECK(next_ < tensors_.size() && written_ == 0 && tensors_[next_].name == name,
        "{}: tensor {} comes out of order", file_.path(), name);
  const TensorSpec& spec = tensors_[next_];
  CHECK(tensor.shape == spec.shape && tensor.dense() && tensor.device == Device::cpu,
        "{}: tensor {} is {}, declared {}", file_.path(), name, tensor.shape, spec.shape);
  const auto* data = static_cast<const std::byte*>(tensor.data);
  const int64_t count = tensor.count();
  if (tensor.dtype == spec.dtype || count == 0)
    return append({data, count ? static_cast<size_t>(tensor.bytes()) : 0});
  const auto chunk = static_cast<size_t>(std::min(count, kChunk));
  std::vector<float> values(chunk);
  std::vector<std::byte> stored(static_cast<size_t>(bytes_of(spec.dtype, chunk)));
  for (int64_t first = 0; first < count; first += kChunk) {
    const int64_t n = std::min(kChunk, count - first);
    to_f32(tensor.dtype, data + bytes_of(tensor.dtype, first), values.data(), n);
    from_f32(values.data(), spec.dtype, stored.data(), n);
    append(std::span(stored).first(static_cast<size_t>(bytes_of(spec.dtype, n))));
  }
}

void TensorWriter::place(size_t tensor, uint64_t first, std::span<const std::byte> piece) {
  CHECK(tensor < tensors_.size() && next_ == 0 && written_ == 0, "{}: tensor {} of {}",
        file_.path(), tensor, tensors_.size());
  put(tensor, first, piece);
}

void TensorWriter::replace_head(std::string_view head) {
  CHECK(!seal_ && head.size() == head_, "{}: a head of {} bytes in the place of {}", file_.path(),
        head.size(), head_);
  file_.write_at(0, std::as_bytes(std::span(head.data(), head.size())));
}

std::vector<uint32_t> TensorWriter::sums() {
  std::sort(pieces_.begin(), pieces_.end());
  std::vector<uint32_t> sums(tensors_.size());
  for (const Piece& piece : pieces_)
    sums[piece.tensor] = combined_crc32(sums[piece.tensor], piece.crc, piece.bytes);
  return sums;
}

void TensorWriter::finish() {
  uint64_t bytes = 0;
  for (const TensorSpec& tensor : tensors_) bytes += stored_bytes(tensor);
  CHECK(done_ == bytes && (next_ == 0 || next_ == tensors_.size()),
        "{}: {} bytes of {} were written", file_.path(), done_, bytes);
  if (seal_) seal_(file_, sums());
  file_.commit();
}

// ---- what a file is

namespace {

struct Signature {
  std::string_view start;
  std::string_view what;
};

constexpr Signature kSignatures[] = {
    {"RIFF", "audio (RIFF)"},
    {"fLaC", "audio (FLAC)"},
    {"OggS", "audio (Ogg)"},
    {"\x89HDF", "an HDF5 file"},
    {"\x93NUMPY", "a NumPy array"},
    {"version https://git-lfs", "a Git LFS pointer; the real file was never fetched"},
    {"<", "HTML or XML, perhaps the error page of a download"},
};

std::string_view describe(std::string_view start) {
  if (start.empty()) return "empty";
  for (const Signature& signature : kSignatures)
    if (start.starts_with(signature.start)) return signature.what;
  const bool text = std::all_of(start.begin(), start.end(), [](char c) {
    return (c >= ' ' && c != 0x7f) || c == '\n' || c == '\r' || c == '\t';
  });
  return text ? "text" : "no format known here";
}

}  // namespace

TensorFile open_tensor_file(const std::string& path) {
  std::array<char, 64> buffer{};
  std::string_view start;
  {
    const InputFile file(path);
    start = {buffer.data(), static_cast<size_t>(std::min<uint64_t>(file.size(), buffer.size()))};
    file.read_at(0, std::as_writable_bytes(std::span(buffer).first(start.size())));
  }
  if (start.starts_with("GGUF")) return open_gguf(path);
  if (start.size() > 8 && start[8] == '{' && start.substr(5, 3) == std::string_view("\0\0\0", 3))
    return open_safetensors(path);
  if (start.starts_with('{')) return open_sharded(path);
  if (starts_as_torch(start)) return open_torch_tensors(path);
  fail(Kind::input, "{}: is {} (expected GGUF, safetensors or a file of PyTorch)", printable(path),
       describe(start));
}

}  // namespace sft
