// Runs the commands of steps: a step like an earlier one is started as one graph, which costs the
// host a call in place of one for each command. An LSTM layer of a library runs by itself, between
// two graphs: it takes the lengths of utterances from the host.
//
// Whether it is like an earlier one is seen from the commands themselves (Commands::structure), and
// values that differ are put into the graph: so a replayed step does what its commands say, and
// nothing that a caller could forget goes stale. As matrices and products have room for more rows
// than are asked for (engine/arena.h), steps over batches of about as many frames are alike, which
// is what makes graphs of a corpus of many lengths few. A structure gets a graph when it comes a
// second time while among the last 64; so shapes that never come again cost no capture, and never
// push out those that do.
#pragma once

#include <memory>
#include <vector>

#include "engine/cuda/driver.h"

namespace sft::cuda {

class StepGraphs {
 public:
  static constexpr size_t kGraphs = 64;
  static constexpr size_t kCommands = 1 << 18;  // of all graphs

  explicit StepGraphs(Driver& driver) : driver_(driver) {}

  // The commands of a step, or of the end of one (not whole), which gets no graph.
  void run(const Commands& commands, bool whole);
  void run_each(const Commands& commands);  // of a step that is not over
  const StepCounts& counts() const { return counts_; }

 private:
  struct Piece {
    size_t begin, end;  // commands of the graph; the next one, if there is one, is an LSTM layer
    std::unique_ptr<Graph> graph;  // null: of nothing
  };
  struct Kept {
    uint64_t structure;
    Commands commands;  // as the graphs have them
    std::vector<Piece> pieces;
    int64_t used;  // the step
  };
  struct Seen {
    uint64_t structure;
    int64_t step;
  };
  Kept* find(uint64_t structure, const Commands& commands);
  bool seen(uint64_t structure);
  void replay(Kept& kept, const Commands& commands);
  Kept* capture(uint64_t structure, const Commands& commands);
  void patch(Kept& kept, const Commands& commands);
  void launch(const Kept& kept);
  void refused(const Error& error);
  void make_room(size_t commands);

  Driver& driver_;
  std::vector<Kept> kept_;
  std::vector<Seen> seen_;
  StepCounts counts_;
};

}  // namespace sft::cuda
