#include "engine/ops/transpose.h"

#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

void check(Where where) {
  Fill fill(3);
  for (const Shape& shape : {Shape{1, 1}, Shape{7, 33}, Shape{65, 31}, Shape{32, 64}}) {
    OpRun run(/*poison=*/true, 0, 0, where);
    Tape tape(run.ctx);
    const std::vector<Array> in{fill.normal(shape)};
    const std::vector<double> out = OpRun::read(transpose(run.ctx, run.place(tape, in)[0])).data;
    for (int64_t k = 0; k < shape[0]; ++k)
      for (int64_t n = 0; n < shape[1]; ++n)
        REQUIRE(out[n * shape[0] + k] == static_cast<float>(in[0].data[k * shape[1] + n]));
  }
}

}  // namespace

TEST_CASE("transpose: rows become columns, on either device") {
  check({});
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  check({Device::cuda, Math::exact});
}

}  // namespace sft
