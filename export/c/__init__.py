"""A Program as one C file: the generator, what it writes beside it, how the file is tested, and the session "native".

`exporter.generate(program, name, derived=..., precision=...)` gives the text for a Program (after
`hrt.program.parallel_linears.joined`), `exporter.export_c` writes that of a model. In C:

    size_t NAME_workspace(void)                                              bytes, of all functions
    int NAME(const float *x, float *y, size_t rows, void *workspace)         several inputs: x0, x1, ..., then y0, y1, ...
    int NAME_derivatives(...)                                                outputs, then derivatives, as predict

The generator knows programs, models and their certificates, and nothing of compilers. `native_session` runs what it
writes: `toolchain` finds the compiler, `library_cache` keeps what that made.
"""
