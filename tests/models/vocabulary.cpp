// CTC heads of Hugging Face folders and their vocabularies (tests/golden/make/ctc_heads.py).
#include "models/vocabulary.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/formats/safetensors.h"
#include "models/checkpoint.h"
#include "tests/doctest.h"
#include "tests/golden.h"
#include "tests/temporary_folder.h"

using namespace sft;
using test::error_of;
using Json = nlohmann::json;
using Names = std::vector<std::string>;

namespace {

namespace fs = std::filesystem;

std::string folder_of(const std::string& name) { return test::golden("models/" + name); }

Json json_of(const std::string& path) { return Json::parse(std::ifstream(path)); }

// A golden folder to spoil.
struct Folder {
  test::TemporaryFolder temporary;
  std::string path = temporary / "model";

  explicit Folder(const std::string& name) {
    fs::copy(folder_of(name), path, fs::copy_options::recursive);
  }
  template <class Change>
  void change(const std::string& file, Change&& change) const {
    Json json = json_of(path + "/" + file);
    change(json);
    std::ofstream(path + "/" + file) << json;
  }
  void set(const std::string& file, const std::string& key, const Json& value) const {
    change(file, [&](Json& json) { json[key] = value; });
  }
  void expect_error(const std::string& part, bool hint = true) const {
    const Error e = error_of([&] { open_model(path); });
    EXPECT(e.kind == Kind::input);
    EXPECT_MESSAGE(e.message.find(part) != std::string::npos, e.message);
    EXPECT(e.message.find('\n') == std::string::npos);
    EXPECT((e.hint.size() > 0) == hint);
  }
};

bool has_remark(const std::vector<std::string>& remarks, const std::string& part) {
  return std::any_of(remarks.begin(), remarks.end(), [&](const std::string& remark) {
    return remark.find(part) != std::string::npos;
  });
}

void expect_same_tensors(const ModelFile& a, const ModelFile& b) {
  REQUIRE(a.tensors.tensors.size() == b.tensors.tensors.size());
  for (const auto& [name, tensor] : a.tensors.tensors) {
    INFO(name);
    const Tensor other = b.tensors.find(name);
    REQUIRE(other.shape == tensor.shape);
    EXPECT(std::memcmp(other.data, tensor.data, static_cast<size_t>(tensor.bytes())) == 0);
  }
}

// A linear CTC head on a tiny model.
ModelFile with_units(const Names& units, int64_t blank,
                     const std::string& golden = "hubert-group") {
  ModelFile model = open_model(folder_of(golden));
  const int64_t width = model.config.width;
  const auto count = static_cast<int64_t>(units.size());
  model.config.task = {.kind = "ctc", .head = "linear", .blank = blank, .units = units};
  model.tensors.add_owned("task.out.weight", {count, width},
                          std::vector<float>(static_cast<size_t>(count * width), 1));
  model.tensors.add_owned("task.out.bias", {count}, std::vector<float>(units.size(), 2));
  return model;
}

}  // namespace

TEST_CASE("vocabulary: special units, and characters or tokens") {
  for (const char* special : {"<s>", "<unk>", "[PAD]", "[x]"}) EXPECT(is_special_unit(special));
  for (const char* text : {"a", "<>", "[]", "|", "'", "<a", "AH", ""})
    EXPECT(!is_special_unit(text));
  EXPECT(units_are_characters(Names{"_", "A", "|", "[UNK]", "É"}, 0));
  EXPECT(!units_are_characters(Names{"_", "A", "[UNK]"}, 0));
  EXPECT(!units_are_characters(Names{"_", "AH", "|"}, 0));
  EXPECT(units_are_characters(Names{"A", "AH", "|"}, 1));
}

TEST_CASE("vocabulary: as the hub has it, as fine-tuning scripts write it, and as transformers 5") {
  const ModelFile hub = open_model(folder_of("hubert-ctc"));
  EXPECT(hub.config.task.kind == "ctc");
  EXPECT(hub.config.task.head == "linear");
  EXPECT(hub.config.task.blank == 0);
  EXPECT(hub.config.normalize);
  REQUIRE(hub.config.task.units.size() == 32);
  EXPECT(hub.config.task.units[4] == "|");
  EXPECT(hub.config.task.units[5] == "E");
  EXPECT(hub.config.task.units[31] == "Z");
  EXPECT(hub.tensors.find("task.out.weight").shape == Shape{32, 32});
  EXPECT(hub.remarks.empty());

  const ModelFile script = open_model(folder_of("wav2vec2-ctc"));
  REQUIRE(script.config.task.units.size() == 30);
  EXPECT(script.config.task.blank == 29);
  EXPECT(script.config.task.units[0] == "|");
  EXPECT(script.config.task.units[28] == "[UNK]");
  EXPECT(script.config.task.units[29] == "[PAD]");
  EXPECT(!script.config.normalize);
  EXPECT(script.remarks == Names{"token </s> has the id 31, and lm_head 30 outputs: left out",
                                 "token <s> has the id 30, and lm_head 30 outputs: left out"});

  const ModelFile five = open_model(folder_of("wavlm-ctc"));
  EXPECT(five.config.task.units == Names{"a", "b", "|", "c", "<blank>", "d", "<unk>", "e", "'"});
  EXPECT(five.config.task.blank == 4);
  EXPECT(five.config.normalize);  // inside processor_config.json
  EXPECT(has_remark(five.remarks, "do_lower_case"));
}

TEST_CASE("vocabulary: folder, GGUF, safetensors and folder again: the same bits and units") {
  for (const char* name : {"hubert-ctc", "wav2vec2-ctc", "wavlm-ctc"}) {
    INFO(name);
    const test::TemporaryFolder folder;
    const std::string gguf = folder / "a.gguf", hf = folder / "b", again = folder / "c.gguf",
                      safe = folder / "d.safetensors";
    const ModelFile first = open_model(folder_of(name));
    save_model(gguf, "gguf", first.config, first.tensors);
    const ModelFile second = open_model(gguf);
    const auto remarks = save_model(hf, "hf", second.config, second.tensors);
    for (const std::string& remark : remarks)
      EXPECT_MESSAGE(remark.find("dropped") == std::string::npos, remark);
    const ModelFile third = open_model(hf);
    save_model(safe, "safetensors", third.config, third.tensors);
    const ModelFile fourth = open_model(safe);
    save_model(again, "gguf", fourth.config, fourth.tensors);
    EXPECT(read_text(gguf) == read_text(again));
    for (const ModelFile* model : {&second, &third, &fourth}) {
      expect_same_tensors(first, *model);
      EXPECT(model->config.task.units == first.config.task.units);
      EXPECT(model->config.task.blank == first.config.task.blank);
      EXPECT(model->config.normalize == first.config.normalize);
    }
    const Json config = json_of(hf + "/config.json");
    EXPECT(config.at("architectures") ==
           json_of(folder_of(name) + "/config.json").at("architectures"));
    EXPECT(config.at("vocab_size") == first.config.task.units.size());
    EXPECT(config.at("pad_token_id") == first.config.task.blank);
    EXPECT(!config.at("sft").contains("sft.task.units"));
    const TensorFile weights = open_safetensors(hf + "/model.safetensors");
    EXPECT(weights.find("lm_head.weight") != nullptr);
    EXPECT(weights.tensors().size() == first.tensors.tensors.size());
  }
}

TEST_CASE("vocabulary: the files of a folder that we write") {
  const test::TemporaryFolder folder;
  const std::string hf = folder / "m";
  const ModelFile hub = open_model(folder_of("hubert-ctc"));
  save_model(hf, "hf", hub.config, hub.tensors);
  EXPECT(json_of(hf + "/vocab.json") == json_of(folder_of("hubert-ctc") + "/vocab.json"));
  EXPECT(json_of(hf + "/special_tokens_map.json") ==
         json_of(folder_of("hubert-ctc") + "/special_tokens_map.json"));
  const Json tokenizer = json_of(hf + "/tokenizer_config.json");
  EXPECT(tokenizer.at("tokenizer_class") == "Wav2Vec2CTCTokenizer");
  EXPECT(tokenizer.at("word_delimiter_token") == "|");
  const std::string card = read_text(hf + "/README.md");
  EXPECT(card.starts_with("---\nlibrary_name: transformers\npipeline_tag: automatic-speech-rec"));
  EXPECT(card.find("# hubert-ctc\n") != std::string::npos);
  EXPECT(card.find("32 units, the blank is `<pad>` (0)") != std::string::npos);
  EXPECT(card.find("HubertForCTC.from_pretrained") != std::string::npos);

  const ModelFile fairseq = with_units({"<s>", "<pad>", "</s>", "<unk>", "|", "É"}, 0);
  save_model(folder / "f", "hf", fairseq.config, fairseq.tensors);
  EXPECT(json_of(folder / "f/special_tokens_map.json") ==
         Json{{"pad_token", "<s>"}, {"unk_token", "<unk>"}, {"eos_token", "</s>"}});
  EXPECT(json_of(folder / "f/config.json").at("bos_token_id").is_null());
  EXPECT(open_model(folder / "f").config.task.units == fairseq.config.task.units);

  const ModelFile phones = with_units({"<pad>", "AA", "B", "ZH"}, 0);
  save_model(folder / "p", "hf", phones.config, phones.tensors);
  EXPECT(json_of(folder / "p/tokenizer_config.json").at("tokenizer_class") ==
         "Wav2Vec2PhonemeCTCTokenizer");
  EXPECT(open_model(folder / "p").config.task.units == phones.config.task.units);

  const ModelFile plain = open_model(folder_of("hubert-group"));
  save_model(folder / "e", "hf", plain.config, plain.tensors);
  EXPECT(!fs::exists(folder / "e/vocab.json"));
  EXPECT(read_text(folder / "e/README.md").find("HubertModel.from_pretrained") !=
         std::string::npos);
}

TEST_CASE(
    "vocabulary: the class of every family, and pre-training heads that it has no place for") {
  for (const auto& [golden, name, dropped] : {std::tuple("data2vec", "Data2VecAudioForCTC", 0),
                                              {"unispeechsat-layer", "UniSpeechSatForCTC", 0},
                                              {"distilhubert.safetensors", "HubertForCTC", 4},
                                              {"wav2vec2-group", "Wav2Vec2ForCTC", 7}}) {
    INFO(name);
    const test::TemporaryFolder folder;
    const ModelFile model = with_units({"<pad>", "|", "a", "b"}, 0, golden);
    int64_t lost = 0;
    for (const std::string& remark : save_model(folder / "m", "hf", model.config, model.tensors))
      lost += remark.starts_with("pretrain.") && remark.ends_with("no place for it, dropped");
    EXPECT(lost == dropped);
    EXPECT(json_of(folder / "m/config.json").at("architectures") == Json::array({name}));
    const ModelFile back = open_model(folder / "m");
    EXPECT(back.config.arch == model.config.arch);
    EXPECT(back.config.task.units == model.config.task.units);
    EXPECT(back.tensors.find("task.out.bias").f32()[3] == 2);
    EXPECT(model_id(back.tensors) == model_id(model.tensors));
  }
}

TEST_CASE("vocabulary: what is wrong in vocab.json") {
  const auto refuses = [](auto&& change, const std::string& part) {
    const Folder f("hubert-ctc");
    f.change("vocab.json", change);
    f.expect_error(part);
  };
  refuses([](Json& v) { v["Ä"] = 32; }, "vocab.json: the id of Ä is 32 (expected 0 to 31, as");
  refuses([](Json& v) { v.erase("Q"); },
          "vocab.json: no token has the id 30 (31 tokens, but lm_head has 32 outputs)");
  refuses([](Json& v) { v["Q"] = 5; }, "vocab.json: E and Q both have the id 5");
  refuses([](Json& v) { v["Q"] = -1; }, "vocab.json: the id of Q is -1");
  refuses([](Json& v) { v["Q"] = "30"; }, "vocab.json: the id of Q is \"30\"");
  refuses([](Json& v) { v["Q"] = 30.0; }, "vocab.json: the id of Q is 30.0");
  refuses([](Json& v) { v["Q"] = uint64_t{1} << 63; }, "vocab.json: the id of Q is 9223372036");
  refuses([](Json& v) { v["QU"] = 30, v.erase("Q"); },
          "vocab.json: token \"QU\" of id 30 (expected single characters without spaces)");
  refuses([](Json& v) { v[" "] = 30, v.erase("Q"); }, "vocab.json: token \" \" of id 30");
  refuses([](Json& v) { v[""] = 30, v.erase("Q"); }, "vocab.json: token \"\" of id 30");
  refuses([](Json& v) { v["[PAD]"] = 0, v.erase("<pad>"); },
          "tokenizer_config.json: pad_token <pad> is not one of the units of ");
  refuses([](Json& v) { v["/"] = 4, v.erase("|"); },
          "tokenizer_config.json: word_delimiter_token | is not one of the units of ");
  refuses([](Json& v) { v = Json{{"eng", v}}; }, "vocab.json: the id of eng is {");
  refuses([](Json& v) { v = Json::array({1}); }, "vocab.json: not a JSON object");
  const Folder f("hubert-ctc");
  std::ofstream(f.path + "/vocab.json") << "{\"a\": 0, ";
  f.expect_error("vocab.json: is no JSON at byte 10");
  std::ofstream(f.path + "/vocab.json") << "{\"a\": 0, \"b\": 1, \"a\": 2}";
  f.expect_error("vocab.json: \"a\" is there twice");
  std::ofstream(f.path + "/vocab.json") << "{\"a\": 1e999}";
  f.expect_error("vocab.json: has a number beyond all limits");
  std::ofstream(f.path + "/vocab.json") << std::string(2 << 20, '{');
  f.expect_error("vocab.json", false);  // too large to be looked into
  fs::remove(f.path + "/vocab.json");
  f.expect_error("vocab.json: is not there (expected the 32 units of lm_head)");
}

TEST_CASE("vocabulary: what is wrong beside vocab.json") {
  const auto refuses = [](const char* model, const char* file, const char* key, const Json& value,
                          const std::string& part) {
    const Folder f(model);
    f.set(file, key, value);
    f.expect_error(part);
  };
  const char* config = "tokenizer_config.json";
  refuses("hubert-ctc", config, "pad_token", nullptr,
          "special_tokens_map.json: pad_token is \"<pad>\" (expected");
  refuses("hubert-ctc", config, "pad_token", 3, "config.json: pad_token is 3 (expected a string)");
  refuses(
      "hubert-ctc", config, "pad_token", "<s>",
      "special_tokens_map.json: pad_token is \"<pad>\" (expected that of tokenizer_config.json)");
  refuses("hubert-ctc", config, "tokenizer_class", "BertTokenizer",
          "tokenizer_class is \"BertTokenizer\" (expected Wav2Vec2CTCTokenizer or ");
  refuses("hubert-ctc", config, "tokenizer_class", "Wav2Vec2PhonemeCTCTokenizer",
          "word_delimiter_token | is one of the units");
  refuses("hubert-ctc", config, "do_lower_case", "yes",
          "do_lower_case is \"yes\" (expected true or");
  refuses("hubert-ctc", config, "replace_word_delimiter_char", "_", "(expected a space)");
  refuses("hubert-ctc", config, "target_lang", "eng", "target_lang is \"eng\" (expected one");
  refuses("hubert-ctc", config, "word_delimiter_token", "/", "word_delimiter_token / is not one");
  const Folder blank("hubert-ctc");  // nothing would part words
  blank.set(config, "pad_token", "|");
  fs::remove(blank.path + "/special_tokens_map.json");
  blank.expect_error("vocab.json: the word delimiter is the blank, too");
  refuses("hubert-ctc", config, "word_delimiter_token", "E", "| is a unit, and not the word delim");
  refuses("hubert-ctc", config, "added_tokens_decoder", Json{{"x", {{"content", "<s>"}}}},
          "added_tokens_decoder.x is {");
  refuses("wav2vec2-ctc", "added_tokens.json", "<s>", 3,
          "vocab.json: b and <s> both have the id 3");
  refuses("wav2vec2-ctc", "added_tokens.json", "<s>", "a",
          "the id of the added token <s> is \"a\"");
  refuses("wav2vec2-ctc", config, "pad_token", "<s>", "special_tokens_map.json: pad_token is");
  refuses("hubert-ctc", "config.json", "vocab_size", 40,
          "config.json: vocab_size is 40, but lm_head.weight is [32, 32]");
  const Folder slow("hubert-ctc");
  slow.set("preprocessor_config.json", "sampling_rate", 8000);
  slow.expect_error("preprocessor_config.json: sampling_rate is 8000 (expected 16000)", false);
  const Folder beyond("wav2vec2-ctc");
  fs::remove(beyond.path + "/special_tokens_map.json");
  beyond.set(config, "pad_token", "<s>");
  beyond.expect_error("tokenizer_config.json: pad_token <s> is not one of the units of ");
  const Folder umlaut("wavlm-ctc");
  umlaut.change("vocab.json", [](Json& v) { v["Ä"] = v["A"], v.erase("A"); });
  umlaut.expect_error("vocab.json: do_lower_case with Ä (expected ASCII)");
  const Folder twice("wavlm-ctc");
  twice.change("vocab.json", [](Json& v) { v["b"] = v["A"], v.erase("A"); });
  twice.expect_error("vocab.json: do_lower_case makes two units b");
}

TEST_CASE("vocabulary: defaults of the tokenizer, and contradictions that only count elsewhere") {
  const Folder f("hubert-ctc");
  fs::remove(f.path + "/tokenizer_config.json");
  EXPECT(open_model(f.path).config.task.units.size() == 32);
  fs::remove(f.path + "/special_tokens_map.json");
  EXPECT(open_model(f.path).config.task.blank == 0);
  f.set("config.json", "pad_token_id", 1);
  EXPECT(open_model(f.path).remarks ==
         Names{"config.json: pad_token_id is 1; the blank is the tokenizer's pad_token, 0"});
  const Folder added("wav2vec2-ctc");  // a token of vocab.json again, and one that it lacks
  added.change("vocab.json", [](Json& v) { v.erase("[PAD]"); });
  added.set("added_tokens.json", "[PAD]", 29);
  added.set("added_tokens.json", "a", 2);
  EXPECT(open_model(added.path).config.task.blank == 29);
  const Folder object("hubert-ctc");
  object.set("tokenizer_config.json", "pad_token", Json{{"content", "<pad>"}, {"lstrip", false}});
  object.set("tokenizer_config.json", "clean_up_tokenization_spaces", true);
  EXPECT(has_remark(open_model(object.path).remarks, "clean_up_tokenization_spaces is not"));
}

TEST_CASE("vocabulary: heads that transformers has no class for are refused, before any file") {
  const test::TemporaryFolder folder;
  const auto refuses = [&](const ModelFile& model, const std::string& part) {
    const Error e = error_of([&] { save_model(folder / "m", "hf", model.config, model.tensors); });
    EXPECT(e.kind == Kind::usage);
    EXPECT_MESSAGE(e.message.find(part) != std::string::npos, e.message);
    EXPECT(fs::is_empty(folder.path()));
  };
  ModelFile model = with_units({"<pad>", "a", "|"}, 0);
  model.tensors.add_owned("task.layer_weights", {4}, {1, 2, 3, 4});
  refuses(model, "task.layer_weights: transformers has no ctc head with layer weights");
  model = with_units({"<pad>", "a", "|"}, 0);
  model.config.task.head = "blstm";
  model.tensors.add_owned("task.proj.bias", {2}, {1, 2});
  refuses(model, "transformers has no ctc head with blstm (expected a linear CTC head alone)");
  model = with_units({"a", "b"}, 0);
  model.config.task.kind = "classify", model.config.task.head = "mean";
  refuses(model, "transformers has no classify head with mean");
  refuses(with_units({"<pad>", "<x>", "<x>", "|"}, 0), "the unit <x> would be there twice");
}
