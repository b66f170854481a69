#include "engine/cuda/step_graphs.h"

#include <algorithm>

namespace sft::cuda {

void StepGraphs::run(const Commands& commands, bool whole) {
  ++counts_.steps;
  if (!whole || !counts_.refused.empty() || commands.size() > kCommands) return run_each(commands);
  const uint64_t structure = commands.structure();
  if (Kept* kept = find(structure, commands)) return replay(*kept, commands);
  Kept* kept = seen(structure) ? capture(structure, commands) : nullptr;
  if (!kept) return run_each(commands);
  launch(*kept);
}

void StepGraphs::run_each(const Commands& commands) {
  for (size_t i = 0; i < commands.size(); ++i) cuda::run(driver_, commands, i);
  counts_.commands += static_cast<int64_t>(commands.size());
}

StepGraphs::Kept* StepGraphs::find(uint64_t structure, const Commands& commands) {
  for (Kept& kept : kept_)
    if (kept.structure == structure && kept.commands.same_structure(commands)) return &kept;
  return nullptr;
}

bool StepGraphs::seen(uint64_t structure) {
  for (Seen& seen : seen_)
    if (seen.structure == structure) {
      seen.step = counts_.steps;
      return true;
    }
  if (seen_.size() < kGraphs) {
    seen_.push_back({structure, counts_.steps});
  } else {
    *std::min_element(seen_.begin(), seen_.end(), [](const Seen& a, const Seen& b) {
      return a.step < b.step;
    }) = {structure, counts_.steps};
  }
  return false;
}

void StepGraphs::replay(Kept& kept, const Commands& commands) {
  try {
    patch(kept, commands);
  } catch (const Error& error) {
    refused(error);
    return run_each(commands);
  }
  launch(kept);
  ++counts_.replayed;
}

void StepGraphs::patch(Kept& kept, const Commands& commands) {
  kept.used = counts_.steps;
  for (const Piece& piece : kept.pieces) {
    for (size_t i = piece.begin; i < std::min(piece.end + 1, commands.size()); ++i) {
      if (!kept.commands.take_values(commands, i) || i == piece.end) continue;
      piece.graph->patch(commands, i);
      ++counts_.patched;
    }
  }
}

// The driver will not have it: the same work is done command by command from now on.
void StepGraphs::refused(const Error& error) {
  counts_.refused = error.message;
  kept_.clear();
}

void StepGraphs::launch(const Kept& kept) {
  for (const Piece& piece : kept.pieces) {
    if (piece.graph) piece.graph->launch();
    if (piece.end < kept.commands.size()) cuda::run(driver_, kept.commands, piece.end);
  }
  counts_.commands += static_cast<int64_t>(kept.commands.size());
}

// Null where the driver will not have it.
StepGraphs::Kept* StepGraphs::capture(uint64_t structure, const Commands& commands) {
  make_room(commands.size());
  Kept kept{structure, commands, {}, counts_.steps};
  try {
    for (size_t begin = 0, i = 0; i <= commands.size(); ++i) {
      if (i < commands.size() && !std::holds_alternative<LstmPass>(commands[i])) continue;
      kept.pieces.push_back({begin, i, begin < i ? driver_.capture(commands, begin, i) : nullptr});
      begin = i + 1;
    }
  } catch (const Error& error) {
    return refused(error), nullptr;
  }
  ++counts_.captured;
  return &kept_.emplace_back(std::move(kept));
}

// For a graph of so many commands more; the one unused for longest goes first.
void StepGraphs::make_room(size_t commands) {
  const auto total = [&] {
    size_t sum = commands;
    for (const Kept& kept : kept_) sum += kept.commands.size();
    return sum;
  };
  while (kept_.size() >= kGraphs || total() > kCommands) {
    kept_.erase(std::min_element(kept_.begin(), kept_.end(),
                                 [](const Kept& a, const Kept& b) { return a.used < b.used; }));
    ++counts_.evicted;
  }
}

}  // namespace sft::cuda
