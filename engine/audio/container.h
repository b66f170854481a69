// What stands between a file and libsndfile: a look at the container's header that lets through
// only the plain sub-formats, so that the decoders with a record of attacks (ADPCM:
// CVE-2026-37555; GSM, DWVW, G.72x, shorten) never see a byte.
//
//   WAV, RF64, W64, AIFF, AIFC, AU, CAF   integer PCM, float, A-law, mu-law
//   NIST SPH                              pcm, ulaw, alaw; not shorten
//   FLAC, MP3 (ID3 tag allowed), Ogg      Vorbis, Opus, FLAC
//
// It also refuses what libsndfile would read silently: a file that ends before the length its
// header declares, and chained Ogg. Streamed files, whose header declares no length, pass.
#pragma once

#include "engine/audio/source.h"

namespace sft {

// Returns the container's name ("WAV", "FLAC", ...). Errors (input) name the file, what was found
// and what was expected.
const char* check_container(const ByteSource& source);

}  // namespace sft
