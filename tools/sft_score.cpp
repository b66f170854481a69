// sft-score: the error rate of one trn file against another (docs/sft-score.md).
#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/utf8.h"
#include "tools/cli.h"
#include "train/metrics.h"

using namespace sft;

namespace {

struct Score {
  std::string id;
  std::vector<std::string> ref, hyp;  // tokens
  std::string steps;                  // of the alignment
  Edits edits;
};

Score score(const TrnPair& pair, bool characters) {
  const auto tokens = [&](const std::string& text) {
    return characters ? utf8_characters(text) : split_words(text);
  };
  Score s{pair.id, tokens(pair.ref), tokens(pair.hyp), "", {}};
  s.steps = align(s.ref, s.hyp);
  s.edits = count_steps(s.steps);
  return s;
}

// Both lines of the alignment, columns under each other; stars where there is a gap.
std::pair<std::string, std::string> aligned(const Score& s) {
  std::pair<std::string, std::string> lines{"REF:", "HYP:"};
  size_t r = 0, h = 0;
  for (char step : s.steps) {
    std::string ref = step == 'I' ? "" : s.ref[r++], hyp = step == 'D' ? "" : s.hyp[h++];
    const size_t width = std::max(utf8_characters(ref).size(), utf8_characters(hyp).size());
    if (ref.empty()) ref = std::string(width, '*');
    if (hyp.empty()) hyp = std::string(width, '*');
    lines.first += fmt::format(" {:<{}}", ref, width);
    lines.second += fmt::format(" {:<{}}", hyp, width);
  }
  return lines;
}

nlohmann::json to_json(const Edits& e) {
  const nlohmann::json rate = e.reference() ? nlohmann::json(e.rate()) : nlohmann::json();
  return {{"rate", rate},
          {"reference", e.reference()},
          {"correct", e.correct},
          {"substitutions", e.substitutions},
          {"deletions", e.deletions},
          {"insertions", e.insertions}};
}

void print_json(const std::string& metric, const Edits& sum, const std::vector<Score>& scores,
                bool each) {
  nlohmann::json report = to_json(sum);
  report["metric"] = metric;
  report["utterances"] = scores.size();
  for (size_t i = 0; each && i < scores.size(); ++i) {
    nlohmann::json one = to_json(scores[i].edits);
    one["id"] = scores[i].id;
    one["steps"] = scores[i].steps;
    report["each"].push_back(std::move(one));
  }
  fmt::print("{}\n", report.dump());
}

void print_text(const std::string& metric, const Edits& sum, const std::vector<Score>& scores,
                int verbosity) {
  if (verbosity > 0) fmt::print("id\treference\tsubstitutions\tdeletions\tinsertions\n");
  for (const Score& s : scores) {
    if (verbosity > 0)
      fmt::print("{}\t{}\t{}\t{}\t{}\n", s.id, s.edits.reference(), s.edits.substitutions,
                 s.edits.deletions, s.edits.insertions);
    if (verbosity > 1) {
      const auto [ref, hyp] = aligned(s);
      fmt::print("{}\n{}\n", ref, hyp);
    }
  }
  fmt::print("{} {:.2f} % ({} edits / {} reference: {} sub, {} del, {} ins; {} utterances)\n",
             metric, 100 * sum.rate(), sum.total(), sum.reference(), sum.substitutions,
             sum.deletions, sum.insertions, scores.size());
}

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, "sft-score", [](Cli& cli) {
    std::string ref, hyp;
    bool cer = false;
    cli.about(
        "Word error rate of HYP against REF: edits / reference words of the whole corpus,\n"
        "counted as NIST sclite counts them. -v: each utterance; -vv: its alignment too.");
    cli.argument("REF.trn", ref, "what was said: lines `words (id)`");
    cli.argument("HYP.trn", hyp, "what was recognised");
    cli.flag("--cer", cer, "characters, spaces too, in place of words");
    cli.parse();

    std::vector<Score> scores;
    Edits sum;
    const std::vector<TrnLine> said = read_trn(ref), recognised = read_trn(hyp);
    for (const TrnPair& pair : match_trn(said, recognised)) {
      scores.push_back(score(pair, cer));
      sum += scores.back().edits;
    }
    const std::string metric = cer ? "CER" : "WER";
    if (sum.reference() == 0) fail(Kind::input, "{}: no words to score against", printable(ref));
    if (cli.json()) {
      print_json(metric, sum, scores, cli.verbosity() > 0);
    } else {
      print_text(metric, sum, scores, cli.verbosity());
    }
  });
}
