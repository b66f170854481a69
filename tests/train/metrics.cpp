#include "train/metrics.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>

#include "engine/rng.h"
#include "tests/doctest.h"
#include "tests/temporary_folder.h"

using namespace sft;

TEST_CASE("metrics: alignments by hand") {
  const auto steps = [](std::string_view ref, std::string_view hyp) {
    return align(split_words(ref), split_words(hyp));
  };
  EXPECT(steps("a b c", "a x c") == "CSC");
  EXPECT(steps("a b c", "a c") == "CDC");
  EXPECT(steps("a c", "a b c") == "CIC");
  EXPECT(steps("", "a b") == "II");
  EXPECT(steps("a b", "") == "DD");
  EXPECT(steps("", "") == "");
  // six gaps (18) are cheaper than five substitutions (20), although they are more edits
  EXPECT(count_steps(steps("a b c d e x y", "x y a b c d e")).total() == 4);
  EXPECT(steps("p q r x y", "x y s t u") == "DDDCCIII");
  const std::vector<int32_t> book(1 << 16);
  EXPECT(test::error_of([&] { align(book, book); }).kind == Kind::input);
  const std::vector<int32_t> pqrxy = {1, 2, 3, 4, 5}, xystu = {4, 5, 6, 7, 8};
  EXPECT(edit_distance(pqrxy, xystu) == 5);
}

TEST_CASE("metrics: corpus rates") {
  Edits sum = word_edits("THE CAT SAT", "THE DOG SAT ON");
  EXPECT(sum == Edits{2, 1, 0, 1});
  sum += word_edits("", "A");
  sum += word_edits("  SO \t IT  GOES", "SO");
  EXPECT(sum.reference() == 6);
  EXPECT(sum.rate() == 5.0 / 6);
  EXPECT(character_edits("A\xc3\x89 B", "AE B") == Edits{3, 1, 0, 0});
  EXPECT(test::error_of([] { Edits{}.rate(); }).kind == Kind::input);
  EXPECT(accuracy(std::vector<int32_t>{1, 2, 3, 4}, std::vector<int32_t>{1, 2, 0, 4}) == 0.75);
  EXPECT(test::error_of([] { accuracy({}, {}); }).kind == Kind::input);
}

TEST_CASE("metrics: trn files") {
  const std::string text = trn_line("ONE TWO", "s-1") + trn_line("", "s-2") + ";; a comment\n\n";
  EXPECT(text == "ONE TWO (s-1)\n(s-2)\n;; a comment\n\n");
  const std::vector<TrnLine> lines = parse_trn(text, "r.trn");
  REQUIRE(lines.size() == 2);
  EXPECT(lines[0].text == "ONE TWO");
  EXPECT(lines[1].text == "");
  EXPECT(parse_trn("A\tB (C  D  (x_1)\r\n", "r.trn")[0].text == "A B (C D");
}

TEST_CASE("metrics: trn errors name the line, or the ids") {
  const auto message = [](const std::string& text) {
    const Error e = test::error_of([&] { parse_trn(text, "r.trn"); });
    EXPECT(e.kind == Kind::input);
    return e.message;
  };
  EXPECT(message("A (1)\nB\n") == "r.trn:2: B (expected words, then an id in parentheses)");
  EXPECT(message("A ()\n") == "r.trn:1: id '' (expected no spaces)");
  EXPECT(message("A (1)\nB (1)\n") == "r.trn:2: id 1 is there twice, first in line 1");
  EXPECT(message("{ A / B } (1)\n") == "r.trn:1: { is mark-up of sclite (expected plain words)");
  EXPECT(message("(UH) B (1)\n") == "r.trn:1: (UH) is mark-up of sclite (expected plain words)");
  EXPECT(message("\xff (1)\n") == "r.trn:1: is not text: \\xff (1)");
  const auto lines = [](const std::string& text) { return parse_trn(text, "x.trn"); };
  EXPECT(match_trn(lines("A (1)\nB (2)\n"), lines("C (2)\nD (1)\n"))[0].hyp == "D");
  EXPECT(test::error_of([&] {
           match_trn(lines("A (1)\nB (2)\n"), lines("A (1)\nB (3)\n"));
         }).message == "ids differ: 1 (2) have no hypothesis, 1 (3) have no reference");
}

namespace {

std::string random_words(Draws& draws, uint32_t shortest, uint32_t longest, uint32_t vocabulary) {
  const std::vector<std::string> all = {"A", "B", "UH-HUH", "IT'S", "\xc3\x89T\xc3\x89",
                                        "a", "*", "X.",     "QU",   "OO"};
  std::vector<std::string> words;
  for (uint32_t n = shortest + draws.below(longest - shortest + 1); n-- > 0;)
    words.push_back(all[draws.below(vocabulary)]);
  return fmt::format("{}", fmt::join(words, " "));
}

// Runs sclite and returns {substitutions, deletions, insertions, correct} by id.
std::map<std::string, Edits> run_sclite(const std::string& sclite, const std::string& folder) {
  const std::string command =
      fmt::format("{} -r {}/ref.trn trn -h {}/hyp.trn trn -i wsj -s -o pra stdout 2>/dev/null",
                  sclite, folder, folder);
  std::map<std::string, Edits> result;
  FILE* pipe = popen(command.c_str(), "r");
  char line[1 << 16], id[64];
  std::string current;
  while (pipe && std::fgets(line, sizeof line, pipe)) {
    Edits e;
    if (std::sscanf(line, "id: (%63[^)])", id) == 1) current = id;
    if (std::sscanf(line, "Scores: (#C #S #D #I) %ld %ld %ld %ld", &e.correct, &e.substitutions,
                    &e.deletions, &e.insertions) == 4)
      result[current] = e;
  }
  if (pipe) pclose(pipe);
  return result;
}

}  // namespace

TEST_CASE("metrics: the counts of sclite, utterance by utterance") {
  const std::string sclite = "/usr/lib/sctk/bin/sclite";
  if (!std::filesystem::exists(sclite)) return test::skip("sclite (package sctk) is not installed");
  const test::TemporaryFolder folder;
  std::map<std::string, Edits> ours;
  std::ofstream ref(folder / "ref.trn"), hyp(folder / "hyp.trn");
  Draws draws(20261121, 0, 0, fnv1a("sclite"));
  for (int i = 0; i < 4000; ++i) {
    const uint32_t vocabulary = 2 + draws.below(9);
    const std::string r = random_words(draws, 1, 25, vocabulary);
    const std::string h = random_words(draws, 0, 25, vocabulary), id = fmt::format("s-{:05}", i);
    ref << trn_line(r, id);
    hyp << trn_line(h, id);
    ours[id] = word_edits(r, h);
  }
  ref.close();
  hyp.close();
  const std::map<std::string, Edits> theirs = run_sclite(sclite, folder.path());
  REQUIRE(theirs.size() == ours.size());
  for (const auto& [id, edits] : ours) {
    INFO(id);
    EXPECT(theirs.at(id) == edits);
  }
}
