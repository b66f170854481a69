// Interpolation of a base with models tuned from it (Speech-FT, Yang et al. 2025, arXiv:2502.12672;
// docs/contract.md section 9), `linear`:
//
//   theta = theta0 + alpha * mean_m(theta_m - theta0)      f64 per element, rounded once to the
//                                                          base's type
//
// Where alpha is 0, or the tuned models agree with the base, the base's bits are copied; where it
// is 1 and there is one tuned model, that one's. Backbone only: pretrain.* comes from the base,
// task.* from `head` or nowhere.
//
// All outputs are made in one pass: chunks of fixed size are read by pread, computed and written by
// whichever thread is free, so the bits depend neither on the number of threads nor on the order of
// the tuned models (they are summed in the order of their ids). The ids of the inputs are made in
// the same pass, each thread hashing what it has read when its turn comes, and written into the
// outputs' heads at its end. Only where the pass needs them before (three tuned models, an output
// without such a head) are the inputs read twice. Memory of a thread: 0.7 MiB, and 0.13 MiB for
// each tuned model.
//
// Errors: Kind::input if a tuned model records another base, is of another configuration, or holds
// a value that is not finite, and if nothing would change; Kind::usage for a pattern that matches
// no tensor; then no output is left.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "models/checkpoint.h"

namespace sft {

struct MergeJob {
  StoredModel base;
  std::vector<StoredModel> tuned;  // at least one

  struct Output {
    double alpha;
    std::string path;  // its name decides the container (format_of_name)
  };
  std::vector<Output> outputs;
  struct TensorAlpha {
    std::string pattern;  // glob over names of backbone tensors
    double alpha;
  };
  std::vector<TensorAlpha> tensors;  // alphas of their own, in every output; the last match counts

  std::optional<StoredModel> head;  // task.* and its configuration are taken from here
  bool allow_other_base = false;
  Existing existing = Existing::refuse;
};

struct MergeReport {
  std::string base_id;
  struct Input {
    std::string name, id;
  };
  std::vector<Input> tuned;  // in the order of their ids

  // L2 norms: of the base, of mean_m(theta_m - theta0), and of merged - base for each output.
  struct Part {
    std::string name;  // conv, feat_proj, pos_conv, enc.0 ..., enc.norm, mask_emb, total
    double base, difference;
    std::vector<double> change;
  };
  std::vector<Part> parts;  // the last is the total
  std::vector<double>
      ratio;  // change / difference of the total: alpha, unless `tensors` says other
  std::vector<std::string> remarks;
};

MergeReport interpolate(MergeJob job);

}  // namespace sft
