// doctest itself, once for every program that links the op specs: some stand beside test cases.
#define DOCTEST_CONFIG_IMPLEMENT
#include "tests/doctest.h"
