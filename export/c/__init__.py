"""A Program as one C file: the generator, and the CPU session that runs it compiled.

`exporter.generate(program, name, derived=..., precision=...)` gives the text for a Program (after
`hrt.program.parallel_linears.joined`), `exporter.export_c` writes that of a model. In C:

    size_t NAME_workspace(void)                                        bytes, of all functions
    int NAME(const float *x, float *y, size_t rows, void *workspace)   several: x0, x1, ..., then y0, y1, ...
    int NAME_derivatives(...)                                          outputs, then derivatives, as predict

Knows programs, models and their certificates. The generator knows nothing of compilers: `toolchain` finds one,
`library_cache` keeps what it made, `native_session` runs that.
"""
