#include "train/text.h"

#include <fstream>

#include "tests/doctest.h"
#include "tests/temporary_folder.h"

using namespace sft;

TEST_CASE("text: the normaliser, and what it deletes") {
  EXPECT(normalise_upper("it 's a well-known  thing") == "IT'S A WELL KNOWN THING");
  EXPECT(normalise_upper("  -- 'tis ") == "'TIS");
  Deleted deleted;
  EXPECT(normalise_upper("caf\xc3\xa9, 9 to 5.", &deleted) == "CAF TO");
  EXPECT(deleted == Deleted{{",", 1}, {".", 1}, {"5", 1}, {"9", 1}, {"\xc3\xa9", 1}});
  EXPECT(normalise_upper("a\tb\nc") == "ABC");  // as the reference: only spaces are kept
  EXPECT(normalise_upper("") == "");
  EXPECT(parse_normalise("none") == Normalise::none);
  EXPECT(test::error_of([] { parse_normalise("lower"); }).kind == Kind::usage);
}

TEST_CASE("text: characters there and back") {
  const Units units = Units::chars();
  EXPECT(units.size() == 32);
  EXPECT(units.characters());
  const std::vector<int32_t> ids = units.encode("IT'S ME", "here");
  EXPECT(ids == std::vector<int32_t>{10, 6, 27, 12, 4, 17, 5});
  EXPECT(units.decode(ids) == "IT'S ME");
  EXPECT(units.decode(std::vector<int32_t>{0, 1, 4, 5, 3, 4, 2}) == "E");
  EXPECT(test::error_of([&] {
           units.encode("A1", "m.tsv:7: id x");
         }).message.find("m.tsv:7: id x: '1' is not a unit") == 0);
  EXPECT(test::error_of([&] { units.encode("A|B", "x"); }).kind == Kind::input);
  EXPECT(test::error_of([&] { units.encode(std::string(4097, 'A'), "x"); }).kind == Kind::input);
}

TEST_CASE("text: phones, words, and lists of one's own") {
  const Units phones = Units::phones();
  EXPECT(phones.size() == 40);
  EXPECT(!phones.characters());
  EXPECT(phones.encode("AA  ZH", "x") == std::vector<int32_t>{1, 39});
  EXPECT(phones.decode(std::vector<int32_t>{39, 0, 1}) == "ZH AA");
  EXPECT(test::error_of([&] { phones.encode("AA0", "x"); }).kind == Kind::input);
  EXPECT(test::error_of([&] { phones.encode("<pad>", "x"); }).kind == Kind::input);

  const test::TemporaryFolder folder;
  const std::string path = folder / "units.txt";
  std::ofstream(path) << "ONE\nTWO\n";
  const Units words = Units::named(path);
  EXPECT(words.symbols() == std::vector<std::string>{"<pad>", "ONE", "TWO"});
  std::ofstream(path) << "ONE\nTWO\nONE\n";
  EXPECT(test::error_of([&] { Units::from_file(path); }).message ==
         path + ": units: ONE is there twice, as 1 and 3");
  std::ofstream(path) << "ONE\n\nTWO\n";
  EXPECT(test::error_of([&] { Units::from_file(path); }).message ==
         path + ": units: unit 2 is empty");
  const Units imported = Units::from_symbols({"|", "A", "B", "<pad>"}, 3);  // a blank of its own
  EXPECT(imported.decode(imported.encode("A B", "x")) == "A B");
  EXPECT(test::error_of([] {
           Units::from_symbols({"<pad>", "A"}).encode("B", "x");
         }).message == "x: 'B' is not a unit (expected one of 1: A)");
  EXPECT(test::error_of([] { Units::from_symbols({"a", "b"}, 2); }).kind == Kind::input);
}

TEST_CASE("text: targets name their row") {
  const Manifest m = parse_manifest(
      "id\tpath\tseconds\ttext\tphones\na\ta\t1\tone-two\tW AH N\nb\tb\t1\t-\t-\nc\tc\t1\t12\t-\n",
      "m.tsv");
  const TargetText upper = target_text("chars", Normalise::upper);
  EXPECT(read_target(m, m.rows[0], upper) == "ONE TWO");
  EXPECT(read_target(m, m.rows[0], target_text("chars", Normalise::none)) == "one-two");
  EXPECT(read_target(m, m.rows[0], target_text("phones", Normalise::upper)) == "W AH N");
  EXPECT(test::error_of([&] { read_target(m, m.rows[1], upper); }).message ==
         "m.tsv:3: id b has no text");
  EXPECT(test::error_of([&] { read_target(m, m.rows[2], upper); }).message ==
         "m.tsv:4: id c: nothing of its text is left by the normaliser: '12'");
}

TEST_CASE("text: CTC paths") {
  EXPECT(ctc_collapse(std::vector<int32_t>{0, 1, 1, 0, 1, 2, 2, 0}, 0) ==
         std::vector<int32_t>{1, 1, 2});
  EXPECT(ctc_collapse(std::vector<int32_t>{3, 1, 3, 1}, 3) == std::vector<int32_t>{1, 1});
  EXPECT(ctc_collapse({}, 0).empty());
  EXPECT(ctc_frames_needed(std::vector<int32_t>{1, 1, 2, 2, 2}) == 8);
  EXPECT(ctc_frames_needed({}) == 0);
  float logits[] = {9, 0, 0, 1, 1, 1, -1, 0, 0, 2, 1, 3, 3, 5, 9};  // [3, 5], V = 4
  Tensor view(logits, {3, 5});
  EXPECT(greedy_ctc(view.columns(0, 4), 1) == std::vector<int32_t>{0, 3});
  EXPECT(greedy_ctc(view.columns(1, 4), 0) == std::vector<int32_t>{2, 3});
}
