/* NAME: an example by hrt.
   cc FLAGS STEM_example.c STEM.c -o example && ./example */
#include <stdio.h>
#include <stdlib.h>
#include "STEM.h"

int main(void) {
    static REAL C_ARRAYS; /* ROWS rows */
    void *workspace = aligned_alloc(64, NAME_workspace()); /* once; every thread has one of its own */
C_INPUTS
    if (!workspace || CALL(ARGUMENTS, ROWS, workspace) != 0) return 1;
C_OUTPUTS
    free(workspace);
    return 0;
}
