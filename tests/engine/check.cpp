#include "engine/check.h"

#include "engine/tensor.h"
#include "tests/doctest.h"

using namespace sft;

TEST_CASE("check: an error keeps kind, message and hint") {
  const Error e = test::error_of([] { fail(Kind::input, Hint{"look there"}, "a.gguf: {}", 3); });
  EXPECT(e.kind == Kind::input);
  EXPECT(e.message == "a.gguf: 3");
  EXPECT(e.hint == "look there");
  EXPECT(test::error_of([] { CHECK(1 == 2, "sum of {}", 1); }).kind == Kind::internal);
}

TEST_CASE("check: printable text has no control characters and no broken UTF-8") {
  EXPECT(printable("enc.0.attn") == "enc.0.attn");
  EXPECT(printable("a\x1b[31mb\n") == "a\\x1b[31mb\\x0a");
  EXPECT(printable("\xff\xc3\xa9") == "\\xff\xc3\xa9");
  EXPECT(printable("\xc0\x80\xed\xa0\x80") == "\\xc0\\x80\\xed\\xa0\\x80");
  EXPECT(printable("\xc2\x85") == "\\xc2\\x85");
  EXPECT(printable(std::string(300, 'x')).size() == 203);
}

TEST_CASE("tensor: views") {
  float data[12];
  const Tensor t(data, {3, 4});
  EXPECT(t.columns(1, 2).row(2) == data + 9);
  EXPECT(t.columns(1, 2).dense() == false);
  EXPECT(t.slice(1, 2).f32() == data + 4);
  EXPECT(t.reshaped({4, 3}).width() == 3);
  EXPECT(test::error_of([&] { t.as<int32_t>(); }).kind == Kind::internal);
}
