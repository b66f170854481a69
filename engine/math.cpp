#include "engine/math.h"

#include "engine/check.h"

namespace sft {

Math math_named(std::string_view text) {
  for (const Math math : {Math::exact, Math::fast16, Math::bf16})
    if (name(math) == text) return math;
  fail(Kind::usage, "math is {}, expected exact, fast16 or bf16", printable(text));
}

}  // namespace sft
