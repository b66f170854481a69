#include "engine/device.h"

#include "engine/cpu/narrow.h"
#include "engine/cuda/driver.h"

namespace sft {

namespace {

std::string version(int cuda) { return fmt::format("{}.{}", cuda / 1000, cuda % 1000 / 10); }

}  // namespace

std::unique_ptr<cuda::Runtime> open_device(std::string_view name, Math math) {
  if (name == "cpu") {
    if (math != Math::exact && !cpu::narrow::available(math))
      fail(Kind::resource, Hint{"leave --math out"}, "--math {} needs a CPU with AVX-512 and {}",
           sft::name(math), math == Math::bf16 ? "BF16" : "VNNI");
    return nullptr;
  }
  if (name != "cuda") fail(Kind::usage, Hint{"cpu or cuda"}, "unknown device {}", printable(name));
  if (!cuda::open_driver)
    fail(Kind::resource, Hint{"build it where nvcc is (README), or use --device cpu"},
         "this program was built without CUDA");
  return std::make_unique<cuda::Runtime>(cuda::open_driver());
}

void cuda::check_usable(const DeviceFacts& facts) {
  if (!facts.driver)
    fail(Kind::resource, Hint{"install NVIDIA's driver, or use --device cpu"},
         "cuda: no driver on this machine");
  if (facts.driver / 1000 < facts.program / 1000)
    fail(Kind::resource, Hint{"update NVIDIA's driver, or use --device cpu"},
         "cuda: the driver serves CUDA {}, this program wants {}", version(facts.driver),
         version(facts.program));
  if (!facts.devices)
    fail(Kind::resource, Hint{"see nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"},
         "cuda: no device (driver {})", version(facts.driver));
  if (!facts.has_code)
    fail(Kind::resource,
         Hint{fmt::format("build it with meson configure -Dsm={}{}, or use --device cpu",
                          facts.major, facts.minor)},
         "cuda: this program has no kernels for {} (sm_{}{})", facts.name, facts.major,
         facts.minor);
}

}  // namespace sft
