// NAME: an example by hrt.
//   cc FLAGS -c STEM.c && c++ -std=c++17 STEM_example.cpp STEM.o -o example && ./example
#include <cstdio>
#include <vector>
#include "STEM.h"

struct alignas(64) Line { unsigned char bytes[64]; };

int main() {
    std::vector<REAL> CPP_ARRAYS; // ROWS rows
    std::vector<Line> workspace(NAME_workspace() / sizeof(Line)); // once; every thread has one of its own
CPP_INPUTS
    if (CALL(CPP_ARGUMENTS, ROWS, workspace.data()) != 0) return 1;
CPP_OUTPUTS
}
