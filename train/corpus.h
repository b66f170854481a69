// Where data is found: `--ctc digits`, `--task er --data superb/`, `--data my.tsv`.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace sft {

// The manifest of corpus `name` (`digits`, `words`, `emotion`, `pretrain`, `ted`, ...):
//   `data` is a file       that manifest
//   `data` is a folder     DATA/NAME.tsv or DATA/NAME/NAME.tsv, and nowhere else
//   `data` is empty        a `name` that is itself a manifest (a file, or ends in .tsv); else the
//                          folders $SFT_DATA, ./data, and the built-in corpora in turn
// `ted`, where there is no manifest: TED-LIUM as distributed in one of these folders is imported
// (train/stm.h, its defaults) into ted.tsv beside it, once.
// Kind::input, listing the places looked at, if it is in none.
std::string find_corpus(std::string_view name, const std::string& data = "");

// The same for a probing task: a corpus of the task's own name (`sid`), else the corpus that serves
// it: pr, sid, asr: digits; ks: words; er: emotion.
std::string find_task_corpus(std::string_view task, const std::string& data = "");

// Folder of the built-in corpora: $SFT_CORPORA, else where this program was built from, else where
// it was installed.
std::string corpora_folder();

}  // namespace sft
