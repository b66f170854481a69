// The emulator's library for LSTM layers: on the host, by the formula. Its weights lie in places
// that no other library would choose, and what it may leave undefined it makes NaN.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "engine/cuda/lstm_pass.h"

namespace sft::cuda::emulator {

std::string lstm_twin_name();
std::shared_ptr<const LstmPlan> lstm_twin_plan(const LstmShape& shape,
                                               std::span<const int32_t> starts);
void run_lstm_twin(const LstmPass& pass);

}  // namespace sft::cuda::emulator
