#include "tools/device_options.h"

namespace sft {

void DeviceOptions::add_to(Cli& cli) {
  cli.choice("--device", device, {"cpu", "cuda"}, "where to compute");
  cli.choice("--math", math, {"exact", "fast16", "bf16"},
             "exact is f32; fast16: int16 products on the CPU; on cuda the default is bf16");
}

void DeviceOptions::settle(const Cli& cli) {
  if (device == "cuda" && !cli.given("--math")) math = "bf16";
  if (device == "cuda" && math == "fast16")
    fail(Kind::usage, Hint{"--math bf16"}, "--math fast16 is of the CPU");
}

void DeviceOptions::apply(const Cli& cli, ConfigBuilder& builder) const {
  if (cli.given("--device")) builder.set("run.device", device, "--device");
  if (cli.given("--math"))
    builder.set("run.math", math, "--math");
  else if (cli.given("--device"))
    builder.set("run.math", device == "cuda" ? "bf16" : "exact", "--device");
}

}  // namespace sft
