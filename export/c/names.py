"""Names for generated functions: identifiers of C and C++, and of Fortran where asked for, that nobody else has."""

import re
from pathlib import Path

from hrt.errors import InputError

LONGEST = 60  # characters
LONGEST_IN_FORTRAN = 63 - len("_derivatives")
WORDS = frozenset(  # of C, C++ and of the generated file itself
    re.findall(
        r"\w+",
        """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class
    co_await co_return co_yield compl concept const const_cast consteval constexpr constinit continue decltype
    default delete do double dynamic_cast else enum explicit export extern false final float for friend goto if
    import inline int long main module mutable namespace new noexcept not not_eq nullptr operator or or_eq
    override private protected public real register reinterpret_cast requires restrict return short signed
    sizeof static static_assert static_cast struct switch template this thread_local throw true try typedef
    typeid typename typeof typeof_unqual union unsigned using virtual void volatile wchar_t while xor xor_eq hrt
    linux unix NULL offsetof
    """,
    )
)
# Types, limits and macros of <stddef.h> and <stdint.h>, which the generated files include: _t is POSIX's own, too.
HEADERS = re.compile(
    r"\w+_t|(U?INT(_FAST|_LEAST)?(8|16|32|64)|U?INT(MAX|PTR)|SIZE|PTRDIFF|W(CHAR|INT)|SIG_ATOMIC)_(MIN|MAX|C)"
)
# Functions of the C library that every program is linked with: a network of such a name would take their place.
LIBRARY = frozenset(
    re.findall(
        r"\w+",
        """
    abort abs accept access acos acosh alarm asctime asin asinh assert atan atan2 atanh atexit atof atoi atol
    atoll bind bsearch calloc cbrt ceil clearerr clock close connect copysign cos cosh creat ctime difftime div
    dup erf erfc errno execl execv exit exp exp2 expm1 fabs fclose fdim feof ferror fflush fgetc fgetpos fgets
    floor fma fmax fmin fmod fopen fork fprintf fputc fputs fread free freopen frexp fscanf fseek fsetpos ftell
    fwrite gamma getc getchar getenv getpid gets gmtime hypot ilogb index isalnum isalpha isdigit isinf isnan
    isspace j0 j1 jn kill labs ldexp ldiv lgamma link listen llabs lldiv llrint llround localtime log log10
    log1p log2 logb longjmp lrint lround lseek malloc mblen mbtowc memchr memcmp memcpy memmove memset mktime
    modf nan nearbyint nextafter nice open pause perror pipe poll pow printf putc putchar putenv puts qsort
    raise rand random read realloc recv remainder remove remquo rename rewind rindex rint round scalbln scalbn
    scanf select send setbuf setjmp setvbuf signal sin sincos sinh sleep snprintf socket sprintf sqrt srand
    srandom sscanf stat stderr stdin stdout strcat strchr strcmp strcoll strcpy strcspn strdup strerror strlen
    strncat strncmp strncpy strpbrk strrchr strspn strstr strtod strtof strtok strtol strtoul swab system tan
    tanh tgamma time times tmpfile tmpnam tolower toupper trunc umask ungetc unlink utime va_arg vfprintf
    vprintf wait write y0 y1 yn
    """,
    )
)
FORTRAN = frozenset(  # names in the Fortran module, which knows no case, and its example; also x0, y1 and so on
    re.findall(
        r"\w+",
        "i rows workspace status bytes memory address c_float c_double c_int c_int8_t c_intptr_t c_size_t c_ptr c_loc",
    )
)


def checked_name(name: str, *, fortran: bool = False) -> str:
    """`name` where it can be that of the functions. Raises InputError."""
    fault = None
    if not isinstance(name, str):
        raise InputError(f"Found the name {name!r:.80}. Expected a string, such as 'net'.")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in WORDS or name.lower().startswith("hrt_"):
        fault = (
            "a C identifier: a letter, then letters, digits and _, no word of C, C++ or of the generated file (hrt_...)"
        )
    elif HEADERS.fullmatch(name):
        fault = "a name without _t at its end, and none of <stdint.h>: the generated file includes that"
    elif name in LIBRARY:
        fault = "a name that no function of the C library has: programs would call the network in its place"
    elif len(name) > LONGEST:
        fault = f"a C identifier of at most {LONGEST} characters"
    elif fortran and len(name) > LONGEST_IN_FORTRAN:
        fault = f"at most {LONGEST_IN_FORTRAN} characters: Fortran's names have 63, that of the derivatives 12 more"
    elif fortran and (name.lower() in FORTRAN or re.fullmatch(r"[xy]\d*", name.lower())):
        fault = "a name that is none of an argument in the Fortran module (x, y, rows, workspace...)"
    if fault:
        raise InputError(f"Found the name {name[:80]!r}. Expected {fault}. Pass name= (--name).")
    return name


def checked_stem(path: Path) -> str:
    """What stands before ".c" in the name of a file, as the header, modules and examples beside it are called too.
    Raises InputError where C cannot include such a name, or the file would be one of these itself.
    """
    if path.suffix in (".h", ".f90", ".cpp", ".txt"):
        raise InputError(f"Found the path {str(path)!r}. Expected that of a C file, which ends with .c.")
    if set(path.stem) & set('"\\?<>') or not path.stem.isprintable():
        raise InputError(
            f"Found the file name {path.name!r}. Expected one that C can include, without quotes, \\ and ?."
        )
    return path.stem
