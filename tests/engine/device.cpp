#include "engine/device.h"

#include "tests/doctest.h"

namespace sft {
namespace {

Error refused(const cuda::DeviceFacts& facts) {
  return test::error_of([&] { cuda::check_usable(facts); });
}

void check(const cuda::DeviceFacts& facts, const std::string& message, const char* hint) {
  const Error e = refused(facts);
  EXPECT(e.kind == Kind::resource);
  EXPECT(e.message == message);
  EXPECT_MESSAGE(e.hint.find(hint) != std::string::npos, e.hint);
}

}  // namespace

TEST_CASE("device: what is missing is said in a line, with what to do") {
  cuda::DeviceFacts facts{.program = 13000};
  check(facts, "cuda: no driver on this machine", "install NVIDIA's driver");
  facts.driver = 12040;
  check(facts, "cuda: the driver serves CUDA 12.4, this program wants 13.0", "update");
  facts.driver = 13020;
  check(facts, "cuda: no device (driver 13.2)", "CUDA_VISIBLE_DEVICES");
  facts.devices = 1, facts.name = "NVIDIA B200", facts.major = 10;
  check(facts, "cuda: this program has no kernels for NVIDIA B200 (sm_100)", "-Dsm=100");
  facts.has_code = true;
  cuda::check_usable(facts);
}

TEST_CASE("device: names") {
  EXPECT(open_device("cpu") == nullptr);
  EXPECT(test::error_of([] { open_device("tpu"); }).kind == Kind::usage);
}

}  // namespace sft
