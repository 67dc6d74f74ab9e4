/* NAME: an example by hrt.
   cc FLAGS STEM_example.c STEM.c -o example && ./example */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include "STEM.h"

int main(void) {
    static REAL C_ARRAYS; /* ROWS rows */
    char *memory = malloc(NAME_workspace() + 63); /* once; every thread has one of its own */
    void *workspace = memory + (uintptr_t)-(uintptr_t)memory % 64; /* at a multiple of 64 */
C_INPUTS
    if (!memory || CALL(ARGUMENTS, ROWS, workspace) != 0) return 1;
C_OUTPUTS
    free(memory);
    return 0;
}
