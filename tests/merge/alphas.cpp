#include "merge/alphas.h"

#include <filesystem>
#include <fstream>

#include "tests/doctest.h"
#include "tests/temporary_folder.h"

using namespace sft;
using Values = std::vector<double>;
using Names = std::vector<std::string>;

TEST_CASE("merge alphas: one, a list, a sweep with both ends") {
  EXPECT(parse_alphas("0.25") == Values{0.25});
  EXPECT(parse_alphas("0.1,0.25,-0.5") == Values{0.1, 0.25, -0.5});
  EXPECT(parse_alphas("0:1:0.1") == Values{0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1});
  EXPECT(parse_alphas("0.05:0.2:0.05") == Values{0.05, 0.1, 0.15, 0.2});
  EXPECT(parse_alphas("0:1:0.4") == Values{0, 0.4, 0.8});
  EXPECT(parse_alphas("1:1:1") == Values{1});
}

TEST_CASE("merge alphas: what is none is refused") {
  for (const char* text : {"", "x", "0.1,", "0.1;0.2", "nan", "inf", "1e999", "0:1", "0:1:0",
                           "1:0:0.1", "0:1:-0.1", "0:1:1e-9", "0:1:0.1:2", "0.1,0.10", "0.25 "}) {
    INFO(text);
    EXPECT(test::error_of([&] { parse_alphas(text); }).kind == Kind::usage);
  }
}

TEST_CASE("merge alphas: text in names") {
  EXPECT(alpha_text(0.1) == "0.10");
  EXPECT(alpha_text(0.25) == "0.25");
  EXPECT(alpha_text(0.125) == "0.125");
  EXPECT(alpha_text(1) == "1.00");
  EXPECT(alpha_text(0) == "0.00");
}

TEST_CASE("merge alphas: names of outputs") {
  const test::TemporaryFolder folder;
  const Names ted = {"runs/ted/"}, both = {"runs/ted", "er.safetensors"};
  const Values one = {0.25}, two = {0.1, 0.25};
  EXPECT(output_paths("out.gguf", "b.gguf", ted, one) == Names{"out.gguf"});
  EXPECT(output_paths("", "m/hubert.gguf", ted, one) == Names{"hubert-ted-a0.25.gguf"});
  EXPECT(output_paths("", "hubert", both, one) == Names{"hubert-ted+er-a0.25.gguf"});
  EXPECT(output_paths("x/out.gguf", "b", ted, two) ==
         Names{"x/out-a0.10.gguf", "x/out-a0.25.gguf"});
  EXPECT(output_paths("out.safetensors", "b", ted, two)[1] == "out-a0.25.safetensors");
  EXPECT(output_paths("hf", "b", ted, one) == Names{"hf"});
  EXPECT(output_paths("hf", "b", ted, two) == Names{"hf-a0.10", "hf-a0.25"});
  EXPECT(output_paths("sweep/", "b", ted, one) == Names{"sweep/b-ted-a0.25.gguf"});
  EXPECT(output_paths(folder.path(), "b", ted, one)[0] == folder / "b-ted-a0.25.gguf");
  std::ofstream(folder / "config.json") << "{}";
  EXPECT(output_paths(folder.path(), "b", ted, one)[0] == folder.path());  // replaced, with --force
}
