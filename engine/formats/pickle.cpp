#include "engine/formats/pickle.h"

#include <algorithm>
#include <bit>
#include <charconv>

#include "engine/check.h"

namespace sft {

// ---- values

PickleType PickleValue::type() const { return pickle_->values_[node_].type; }

std::optional<int64_t> PickleValue::integer() const {
  if (!is(PickleType::integer) && !is(PickleType::boolean)) return {};
  return pickle_->values_[node_].integer;
}

std::optional<double> PickleValue::real() const {
  if (is(PickleType::real)) return pickle_->values_[node_].real;
  const auto whole = integer();
  return whole ? std::optional(static_cast<double>(*whole)) : std::nullopt;
}

std::string_view PickleValue::text() const {
  if (!is(PickleType::text) && !is(PickleType::bytes)) return {};
  const Pickle::Value& value = pickle_->values_[node_];
  return {value.text, value.length};
}

namespace {

bool is_container(PickleType type) {
  return type == PickleType::list || type == PickleType::tuple || type == PickleType::set ||
         type == PickleType::dict;
}

}  // namespace

size_t PickleValue::size() const {
  const Pickle::Value& value = pickle_->values_[node_];
  if (is_container(value.type)) return pickle_->lists_[value.integer].size();
  if (value.type == PickleType::object)
    return pickle_->lists_[pickle_->objects_[value.integer].added].size();
  return 0;
}

PickleValue PickleValue::operator[](size_t i) const {
  CHECK(i < size(), "pickle: element {} of {}", i, size());
  const Pickle::Value& value = pickle_->values_[node_];
  const auto list = is_container(value.type) ? static_cast<size_t>(value.integer)
                                             : pickle_->objects_[value.integer].added;
  return {*pickle_, pickle_->lists_[list][i]};
}

std::optional<PickleValue> PickleValue::find(std::string_view key) const {
  if (!is(PickleType::dict) && !is(PickleType::object)) return {};
  for (size_t i = size() / 2; i-- > 0;) {
    const PickleValue name = (*this)[2 * i];
    if (name.is(PickleType::text) && name.text() == key) return (*this)[2 * i + 1];
  }
  return {};
}

std::string_view PickleValue::module() const {
  return is(PickleType::global) ? pickle_->globals_[pickle_->values_[node_].integer].module
                                : std::string_view();
}

std::string_view PickleValue::name() const {
  return is(PickleType::global) ? pickle_->globals_[pickle_->values_[node_].integer].name
                                : std::string_view();
}

bool PickleValue::is_global(std::string_view module, std::string_view name) const {
  return is(PickleType::global) && this->module() == module && this->name() == name;
}

PickleValue PickleValue::id() const {
  CHECK(is(PickleType::persistent), "pickle: not a persistent id");
  return {*pickle_, pickle_->objects_[pickle_->values_[node_].integer].arguments};
}

PickleValue PickleValue::maker() const {
  CHECK(is(PickleType::object), "pickle: not an object");
  return {*pickle_, pickle_->objects_[pickle_->values_[node_].integer].maker};
}

PickleValue PickleValue::arguments() const {
  CHECK(is(PickleType::object), "pickle: not an object");
  return {*pickle_, pickle_->objects_[pickle_->values_[node_].integer].arguments};
}

PickleValue PickleValue::state() const {
  CHECK(is(PickleType::object), "pickle: not an object");
  return {*pickle_, pickle_->objects_[pickle_->values_[node_].integer].state};
}

uint64_t PickleValue::offset() const {
  CHECK(is(PickleType::object) || is(PickleType::persistent), "pickle: no object");
  return pickle_->objects_[pickle_->values_[node_].integer].offset;
}

std::vector<PickleValue> Pickle::persistent_ids() const {
  std::vector<PickleValue> ids;
  for (Node i = 0; i < values_.size(); ++i)
    if (values_[i].type == PickleType::persistent) ids.emplace_back(*this, i);
  return ids;
}

// ---- the machine

namespace {

constexpr size_t kMostValues = 1 << 20, kMostMemory = 32 << 20;
constexpr size_t kMostMemo = 1 << 20, kMostDepth = 1 << 20;
constexpr uint64_t kLongestLine = 1 << 16;

enum Opcode : uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kDup = '2',
  kFloat = 'F',
  kInt = 'I',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kLong = 'L',
  kBinInt2 = 'M',
  kNone = 'N',
  kPersId = 'P',
  kBinPersId = 'Q',
  kReduce = 'R',
  kString = 'S',
  kBinString = 'T',
  kShortBinString = 'U',
  kUnicode = 'V',
  kBinUnicode = 'X',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kDict = 'd',
  kEmptyDict = '}',
  kAppends = 'e',
  kGet = 'g',
  kBinGet = 'h',
  kInst = 'i',
  kLongBinGet = 'j',
  kList = 'l',
  kEmptyList = ']',
  kObj = 'o',
  kPut = 'p',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kEmptyTuple = ')',
  kSetItems = 'u',
  kBinFloat = 'G',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kLong4 = 0x8b,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kBinBytes8 = 0x8e,
  kEmptySet = 0x8f,
  kAddItems = 0x90,
  kFrozenSet = 0x91,
  kNewObjEx = 0x92,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
  kByteArray8 = 0x96,
};

struct PlainMaker {
  std::string_view module, name;
  PickleType type;
};
constexpr PlainMaker kPlainMakers[] = {
    {"collections", "OrderedDict", PickleType::dict},
    {"collections", "defaultdict", PickleType::dict},
    {"builtins", "dict", PickleType::dict},
    {"builtins", "list", PickleType::list},
    {"builtins", "tuple", PickleType::tuple},
    {"builtins", "set", PickleType::set},
    {"builtins", "frozenset", PickleType::set},
    {"builtins", "bytearray", PickleType::bytes},
    {"__builtin__", "dict", PickleType::dict},
    {"__builtin__", "list", PickleType::list},
    {"__builtin__", "tuple", PickleType::tuple},
    {"__builtin__", "set", PickleType::set},
    {"__builtin__", "frozenset", PickleType::set},
    {"__builtin__", "bytearray", PickleType::bytes},
    {"_codecs", "encode", PickleType::bytes},
    {"torch", "Size", PickleType::tuple},
};

}  // namespace

class PickleMachine {
 public:
  PickleMachine(ByteReader& in, Pickle& to) : in_(in), p_(to) {}

  void run() {
    p_.values_.emplace_back();  // none
    for (;;) {
      at_ = in_.offset();
      const uint8_t op = in_.u8("opcode");
      if (op == kStop) break;
      if (!constant(op) && !text(op) && !container(op) && !stack(op) && !call(op))
        in_.bad("opcode", "before this is {:#04x}, which is not read", op);
    }
    p_.root_ = pop();
    if (!stack_.empty() || !marks_.empty())
      in_.bad("end of the pickle", "leaves {} values", stack_.size());
  }

 private:
  using Node = Pickle::Node;

  // ---- memory
  void charge(size_t bytes) {
    memory_ += bytes;
    if (memory_ > kMostMemory || p_.values_.size() > kMostValues)
      in_.bad("pickle", "holds more than {} values or {} MiB of them", kMostValues,
              kMostMemory >> 20);
  }
  Node add(PickleType type, int64_t integer) {
    charge(sizeof(Pickle::Value));
    Pickle::Value value;
    value.type = type;
    value.integer = integer;
    p_.values_.push_back(value);
    return static_cast<Node>(p_.values_.size() - 1);
  }
  uint32_t add_list(std::vector<Node> nodes) {
    charge(sizeof nodes + 4 * nodes.size() + 16);
    p_.lists_.push_back(std::move(nodes));
    return static_cast<uint32_t>(p_.lists_.size() - 1);
  }
  Node add_object(PickleType type, Node maker, Node arguments) {
    charge(sizeof(Pickle::Object));
    const uint32_t added = type == PickleType::object ? add_list({}) : 0;
    p_.objects_.push_back({maker, arguments, 0, added, at_});
    return add(type, static_cast<int64_t>(p_.objects_.size() - 1));
  }

  // ---- the stack
  void push(Node node) {
    if (stack_.size() >= kMostDepth) in_.bad("stack", "is deeper than {}", kMostDepth);
    stack_.push_back(node);
  }
  void push(PickleType type, int64_t integer = 0) { push(add(type, integer)); }
  void push_list(PickleType type, std::vector<Node> nodes) {
    push(type, add_list(std::move(nodes)));
  }
  Node top() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) in_.bad("stack", "is empty");
    return stack_.back();
  }
  Node pop() {
    const Node node = top();
    stack_.pop_back();
    return node;
  }
  std::vector<Node> pop_to_mark() {
    if (marks_.empty()) in_.bad("stack", "has no mark");
    std::vector<Node> nodes(stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back()),
                            stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return nodes;
  }
  std::vector<Node> pop_some(size_t count) {
    std::vector<Node> nodes(count);
    for (size_t i = count; i-- > 0;) nodes[i] = pop();
    return nodes;
  }

  // ---- arguments of opcodes
  std::string_view line(std::string_view what) {
    const uint64_t begin = in_.offset();
    uint64_t length = 0;
    while (in_.u8(what) != '\n')
      if (++length > kLongestLine) in_.bad(what, "is longer than {} bytes", kLongestLine);
    return {in_.behind(begin), length};
  }
  template <class T>
  T parse(std::string_view digits, std::string_view what) {
    T value{};
    const char* end = digits.data() + digits.size();
    const auto [stop, error] = std::from_chars(digits.data(), end, value);
    if (error != std::errc() || stop != end)
      in_.bad(what, "ends a line that is no number: {}", printable(digits, 40));
    return value;
  }

  // ---- opcodes
  bool constant(uint8_t op) {
    switch (op) {
      case kProto:
        if (const uint8_t protocol = in_.u8("protocol"); protocol > 5)
          in_.bad("protocol", "is {} (expected at most 5)", protocol);
        return true;
      case kFrame:
        if (const uint64_t bytes = in_.u64("frame"); bytes > in_.remaining())
          in_.bad("frame", "is of {} bytes, {} remain", bytes, in_.remaining());
        return true;
      case kNone:
        return push(Node{0}), true;
      case kNewTrue:
      case kNewFalse:
        return push(PickleType::boolean, op == kNewTrue), true;
      case kBinInt:
        return push(PickleType::integer, in_.i32("integer")), true;
      case kBinInt1:
        return push(PickleType::integer, in_.u8("integer")), true;
      case kBinInt2:
        return push(PickleType::integer, in_.u16("integer")), true;
      case kInt:
        return push_decimal(line("integer"), true), true;
      case kLong:
        return push_decimal(line("integer"), false), true;
      case kLong1:
        return push_long(in_.u8("length of an integer")), true;
      case kLong4:
        return push_long(length32("length of an integer")), true;
      case kFloat:
        return push_real(parse<double>(line("real number"), "real number")), true;
      case kBinFloat:
        return push_real(std::bit_cast<double>(__builtin_bswap64(in_.u64("real number")))), true;
    }
    return false;
  }
  void push_decimal(std::string_view digits, bool boolean) {
    if (boolean && (digits == "00" || digits == "01"))
      return push(PickleType::boolean, digits == "01");
    if (digits.ends_with('L')) digits.remove_suffix(1);
    push(PickleType::integer, parse<int64_t>(digits, "integer"));
  }
  void push_long(uint64_t length) {
    const std::string_view bytes = in_.string(length, length, "integer");
    if (length > 8) return push(add_object(PickleType::object, 0, 0));
    const bool negative = !bytes.empty() && (bytes.back() & 0x80);
    uint64_t value = negative ? ~uint64_t{0} : 0;
    std::memcpy(&value, bytes.data(), bytes.size());
    push(PickleType::integer, static_cast<int64_t>(value));
  }
  void push_real(double real) {
    push(PickleType::real);
    p_.values_[stack_.back()].real = real;
  }
  uint64_t length32(std::string_view what) {
    const int32_t length = in_.i32(what);
    if (length < 0) in_.bad(what, "is {}", length);
    return static_cast<uint64_t>(length);
  }

  bool text(uint8_t op) {
    switch (op) {
      case kString:
        return push_quoted(line("text")), true;
      case kUnicode:
        return push_escaped(line("text")), true;
      case kBinString:
        return push_text(PickleType::text, length32("length of a text")), true;
      case kShortBinString:
      case kShortBinUnicode:
        return push_text(PickleType::text, in_.u8("length of a text")), true;
      case kBinUnicode:
        return push_text(PickleType::text, in_.u32("length of a text")), true;
      case kBinUnicode8:
        return push_text(PickleType::text, in_.u64("length of a text")), true;
      case kShortBinBytes:
        return push_text(PickleType::bytes, in_.u8("length of bytes")), true;
      case kBinBytes:
        return push_text(PickleType::bytes, in_.u32("length of bytes")), true;
      case kBinBytes8:
      case kByteArray8:
        return push_text(PickleType::bytes, in_.u64("length of bytes")), true;
    }
    return false;
  }
  void push_view(PickleType type, std::string_view view) {
    push(type);
    p_.values_[stack_.back()].text = view.data();
    p_.values_[stack_.back()].length = static_cast<uint32_t>(view.size());
  }
  void push_text(PickleType type, uint64_t length) {
    push_view(type, in_.string(length, UINT32_MAX, "text"));
  }
  void push_quoted(std::string_view quoted) {
    if (quoted.size() < 2 || quoted.front() != quoted.back() ||
        (quoted.front() != '\'' && quoted.front() != '"'))
      in_.bad("text", "ends a line without quotes");
    push_escaped(quoted.substr(1, quoted.size() - 2));
  }
  // \n, \', \x41 and \u0041; protocol 0 only.
  void push_escaped(std::string_view escaped) {
    if (escaped.find('\\') == std::string_view::npos) return push_view(PickleType::text, escaped);
    std::string plain;
    for (size_t i = 0; i < escaped.size(); ++i) {
      if (escaped[i] != '\\' || i + 1 == escaped.size()) {
        plain += escaped[i];
        continue;
      }
      const char kind = escaped[++i];
      const size_t digits = kind == 'x' ? 2 : kind == 'u' ? 4 : 0;
      if (digits > 0 && i + digits < escaped.size()) {
        uint32_t code = 0;
        for (size_t d = 0; d < digits; ++d) code = code * 16 + digit(escaped[++i]);
        append_utf8(plain, code);
      } else {
        plain += kind == 'n' ? '\n' : kind == 't' ? '\t' : kind == 'r' ? '\r' : kind;
      }
    }
    charge(plain.size() + sizeof plain);
    push_view(PickleType::text, p_.texts_.emplace_back(std::move(plain)));
  }
  uint32_t digit(char c) {
    if (c >= '0' && c <= '9') return static_cast<uint32_t>(c - '0');
    const char lower = static_cast<char>(c | 0x20);
    if (lower < 'a' || lower > 'f') in_.bad("text", "has an escape that is not hexadecimal");
    return static_cast<uint32_t>(lower - 'a' + 10);
  }
  static void append_utf8(std::string& to, uint32_t code) {
    if (code < 0x80) {
      to += static_cast<char>(code);
    } else if (code < 0x800) {
      to += static_cast<char>(0xc0 | code >> 6);
      to += static_cast<char>(0x80 | (code & 0x3f));
    } else {
      to += static_cast<char>(0xe0 | code >> 12);
      to += static_cast<char>(0x80 | (code >> 6 & 0x3f));
      to += static_cast<char>(0x80 | (code & 0x3f));
    }
  }

  bool container(uint8_t op) {
    switch (op) {
      case kEmptyList:
        return push_list(PickleType::list, {}), true;
      case kEmptyTuple:
        return push_list(PickleType::tuple, {}), true;
      case kEmptyDict:
        return push_list(PickleType::dict, {}), true;
      case kEmptySet:
        return push_list(PickleType::set, {}), true;
      case kList:
        return push_list(PickleType::list, pop_to_mark()), true;
      case kTuple:
        return push_list(PickleType::tuple, pop_to_mark()), true;
      case kFrozenSet:
        return push_list(PickleType::set, pop_to_mark()), true;
      case kDict:
        return push_list(PickleType::dict, pairs(pop_to_mark())), true;
      case kTuple1:
      case kTuple2:
      case kTuple3:
        return push_list(PickleType::tuple, pop_some(op - kTuple1 + size_t{1})), true;
      case kAppend:
        return add_to_top(pop_some(1), PickleType::list), true;
      case kAppends:
        return add_to_top(pop_to_mark(), PickleType::list), true;
      case kAddItems:
        return add_to_top(pop_to_mark(), PickleType::set), true;
      case kSetItem:
        return add_to_top(pop_some(2), PickleType::dict), true;
      case kSetItems:
        return add_to_top(pairs(pop_to_mark()), PickleType::dict), true;
    }
    return false;
  }
  std::vector<Node> pairs(std::vector<Node> nodes) {
    if (nodes.size() % 2) in_.bad("dict", "has a key without a value");
    return nodes;
  }
  void add_to_top(const std::vector<Node>& nodes, PickleType wanted) {
    const Pickle::Value& value = p_.values_[top()];
    if (value.type != wanted && value.type != PickleType::object)
      in_.bad("stack", "has no container to add {} values to", nodes.size());
    charge(8 * nodes.size());
    const auto index = wanted == value.type ? static_cast<size_t>(value.integer)
                                            : p_.objects_[value.integer].added;
    auto& list = p_.lists_[index];
    list.insert(list.end(), nodes.begin(), nodes.end());
  }

  bool stack(uint8_t op) {
    switch (op) {
      case kMark:
        if (marks_.size() >= kMostDepth) in_.bad("stack", "has more than {} marks", kMostDepth);
        return marks_.push_back(stack_.size()), true;
      case kPop:
        if (!marks_.empty() && marks_.back() == stack_.size()) return marks_.pop_back(), true;
        return pop(), true;
      case kPopMark:
        return pop_to_mark(), true;
      case kDup:
        return push(top()), true;
      case kPut:
        return remember(parse<uint64_t>(line("memo"), "memo")), true;
      case kBinPut:
        return remember(in_.u8("memo")), true;
      case kLongBinPut:
        return remember(in_.u32("memo")), true;
      case kMemoize:
        return remember(memoized_), true;
      case kGet:
        return recall(parse<uint64_t>(line("memo"), "memo")), true;
      case kBinGet:
        return recall(in_.u8("memo")), true;
      case kLongBinGet:
        return recall(in_.u32("memo")), true;
    }
    return false;
  }
  void remember(uint64_t place) {
    if (place >= kMostMemo) in_.bad("memo", "is at {} (at most {})", place, kMostMemo);
    if (place >= memo_.size())
      memo_.resize(std::max<size_t>(place + 1, 2 * memo_.size()), kNothing);
    if (memo_[place] == kNothing) ++memoized_;
    memo_[place] = top();
  }
  void recall(uint64_t place) {
    if (place >= memo_.size() || memo_[place] == kNothing)
      in_.bad("memo", "has nothing at {}", place);
    push(memo_[place]);
  }

  bool call(uint8_t op) {
    switch (op) {
      case kGlobal: {
        const std::string_view module = line("module"), name = line("name");
        return push_global(module, name), true;
      }
      case kStackGlobal: {
        const std::vector<Node> names = pop_some(2);
        return push_global(text_of(names[0]), text_of(names[1])), true;
      }
      case kReduce: {
        const std::vector<Node> parts = pop_some(2);
        return push(result_of(parts[0], parts[1])), true;
      }
      case kNewObj: {
        const std::vector<Node> parts = pop_some(2);
        return push(add_object(PickleType::object, parts[0], parts[1])), true;
      }
      case kNewObjEx: {
        const std::vector<Node> parts = pop_some(3);
        return push(add_object(PickleType::object, parts[0], parts[1])), true;
      }
      case kInst: {
        const std::string_view module = line("module"), name = line("name");
        return push_instance(module, name), true;
      }
      case kObj: {
        std::vector<Node> parts = pop_to_mark();
        if (parts.empty()) in_.bad("stack", "has no class to make an object of");
        const Node maker = parts.front();
        parts.erase(parts.begin());
        const Node arguments = add(PickleType::tuple, add_list(std::move(parts)));
        return push(add_object(PickleType::object, maker, arguments)), true;
      }
      case kBuild:
        return build(pop()), true;
      case kPersId:
        push_view(PickleType::text, line("persistent id"));
        [[fallthrough]];
      case kBinPersId:
        return push(add_object(PickleType::persistent, 0, pop())), true;
    }
    return false;
  }
  std::string_view text_of(Node node) {
    if (p_.values_[node].type != PickleType::text) in_.bad("global", "has a name that is no text");
    return {p_.values_[node].text, p_.values_[node].length};
  }
  Node add_global(std::string_view module, std::string_view name) {
    charge(sizeof(Pickle::Global));
    p_.globals_.push_back({module, name});
    return add(PickleType::global, static_cast<int64_t>(p_.globals_.size() - 1));
  }
  void push_global(std::string_view module, std::string_view name) {
    push(add_global(module, name));
  }
  void push_instance(std::string_view module, std::string_view name) {
    const Node arguments = add(PickleType::tuple, add_list(pop_to_mark()));
    push(add_object(PickleType::object, add_global(module, name), arguments));
  }
  // Attributes of containers (OrderedDict's _metadata) are not kept.
  void build(Node state) {
    const Pickle::Value& value = p_.values_[top()];
    if (value.type == PickleType::object) p_.objects_[value.integer].state = state;
  }

  // What is called stays uncalled, but for plain containers.
  Node result_of(Node maker, Node arguments) {
    const PickleValue global(p_, maker), given(p_, arguments);
    if (!given.is(PickleType::tuple)) in_.bad("arguments", "of a call are not a tuple");
    const auto* plain =
        std::find_if(std::begin(kPlainMakers), std::end(kPlainMakers),
                     [&](const PlainMaker& m) { return global.is_global(m.module, m.name); });
    if (plain != std::end(kPlainMakers)) {
      const std::optional<Node> made = plain_value(plain->type, given);
      if (made) return *made;
    }
    return add_object(PickleType::object, maker, arguments);
  }
  std::optional<Node> plain_value(PickleType type, PickleValue given) {
    if (type == PickleType::bytes) {
      if (given.size() == 0 || given[0].text().empty()) return {};
      const std::string_view view = given[0].text();
      push_view(type, view);
      return pop();
    }
    const bool keyed = type == PickleType::dict;
    if (given.size() == 0 || (keyed && !given[0].is(PickleType::list)))
      return add(type, add_list({}));
    std::vector<Node> nodes;
    charge(8 * given[0].size());
    for (size_t i = 0; i < given[0].size(); ++i) {
      const PickleValue item = given[0][i];
      if (!keyed) {
        nodes.push_back(item.node_);
      } else if (item.size() == 2) {
        nodes.push_back(item[0].node_), nodes.push_back(item[1].node_);
      } else {
        return {};
      }
    }
    return add(type, add_list(std::move(nodes)));
  }

  static constexpr Node kNothing = ~Node{0};

  ByteReader& in_;
  Pickle& p_;
  uint64_t at_ = 0;  // of the opcode
  size_t memory_ = 0, memoized_ = 0;
  std::vector<Node> stack_, memo_;
  std::vector<size_t> marks_;
};

Pickle::Pickle(ByteReader& in) { PickleMachine(in, *this).run(); }

}  // namespace sft
