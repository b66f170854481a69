// Pickles, read as inert trees. Nothing in a pickle is looked up, made or called: a global is two
// strings, and every call is an `object` that remembers what was asked for. Only what makes plain
// containers is understood: collections.OrderedDict and defaultdict, the built-in set, list, ...,
// torch.Size, and _codecs.encode (bytes in protocol 2).
//
// Protocols 0 to 5 without out-of-band buffers and extension codes. Values may share parts, and may
// contain themselves: whoever follows them bounds his steps.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/formats/byte_reader.h"

namespace sft {

class Pickle;

enum class PickleType : uint8_t {
  none,
  boolean,
  integer,  // 64 bits; longer ones are objects without a maker
  real,
  text,
  bytes,
  list,
  tuple,
  set,
  dict,
  global,      // module and name
  persistent,  // a persistent id: one value, in which torch describes a storage
  object,      // what a call would have made
};

// A value inside a Pickle, which must outlive it.
class PickleValue {
 public:
  PickleValue(const Pickle& pickle, uint32_t node) : pickle_(&pickle), node_(node) {}

  PickleType type() const;
  bool is(PickleType wanted) const { return type() == wanted; }
  bool operator==(const PickleValue& other) const { return node_ == other.node_; }  // the same one

  std::optional<int64_t> integer() const;  // also of a boolean
  std::optional<double> real() const;      // also of an integer
  std::string_view text() const;           // of text and bytes; else empty

  // Elements of a list, tuple or set; keys and values in turn of a dict, and what was added to an
  // object as to a list or a dict.
  size_t size() const;
  PickleValue operator[](size_t i) const;
  // The value of a text key, the last where it comes twice. None: not there, or this is no dict.
  std::optional<PickleValue> find(std::string_view key) const;

  std::string_view module() const;  // of a global
  std::string_view name() const;
  bool is_global(std::string_view module, std::string_view name) const;

  PickleValue id() const;     // of a persistent
  PickleValue maker() const;  // of an object: what was called, mostly a global
  PickleValue arguments() const;
  PickleValue state() const;  // what it was given after it was made, or none
  uint64_t offset() const;    // in the file, of an object's or a persistent's opcode

 private:
  friend class PickleMachine;
  const Pickle* pickle_;
  uint32_t node_;
};

class Pickle {
 public:
  // Reads one pickle and leaves `in` behind it. Texts are views of the bytes that `in` reads.
  // Kind::input for anything malformed, or above 2^20 values or 32 MiB of them.
  explicit Pickle(ByteReader& in);

  PickleValue root() const { return {*this, root_}; }
  // Every persistent id, in the order of the file.
  std::vector<PickleValue> persistent_ids() const;

 private:
  friend class PickleValue;
  friend class PickleMachine;
  using Node = uint32_t;

  struct Value {
    PickleType type = PickleType::none;
    uint32_t length = 0;  // of text
    union {
      int64_t integer = 0;  // or an index into lists_, globals_ or objects_
      double real;
      const char* text;
    };
  };
  struct Global {
    std::string_view module, name;
  };
  struct Object {
    Node maker, arguments, state;
    uint32_t added;  // index into lists_
    uint64_t offset;
  };

  std::deque<Value> values_;  // 0 is none
  std::deque<std::vector<Node>> lists_;
  std::deque<Global> globals_;
  std::deque<Object> objects_;
  std::deque<std::string> texts_;  // those with escapes
  Node root_ = 0;
};

}  // namespace sft
