"""Expressions: they mean what numpy makes of the same tree, and whatever else is written is an InputError."""

import ast
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import hrt
from hrt.derivatives.expressions import DEPTH, FUNCTIONS, LENGTH, Names, parse_expression

ONE, SEVERAL = Names(2, 1), Names(3, 4)
ROWS = 33


def values_of(names: Names, derivatives: tuple[str, ...], seed: int = 0) -> dict[str, torch.Tensor]:
    """Values as a network of several components, or of one, gives them; zeros and negative numbers among them."""
    g = np.random.default_rng(seed)
    outputs = {key: g.normal(0, 2, (names.components, ROWS)).round(2) for key in ("u", *derivatives)}
    inputs = {f"x{k}": g.normal(0, 2, ROWS).round(2) for k in range(names.coordinates)}
    return {key: torch.from_numpy(v) for key, v in (outputs | inputs).items()}


OPERATORS = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide, ast.Pow: np.power}
NUMPY = {name: getattr(np, name) for name in FUNCTIONS}


def by_torch(name: str, *arguments: np.ndarray) -> np.ndarray:
    return getattr(torch, name)(*(torch.from_numpy(np.array(a)) for a in arguments)).numpy()


def in_order(name: str) -> str:
    """d1d0 as d0d1."""
    return "".join(f"d{k}" for k in sorted(map(int, name[1:].split("d")))) if name[0] == "d" else name


def by_numpy(node: ast.expr, values: dict) -> np.ndarray:
    """What a tree means. Sums, products, quotients and signs are numpy's, to the last bit; functions and powers, whose
    last bits are free, are torch's here and compared with numpy's one by one below.
    """
    match node:
        case ast.Constant(value):
            return np.array(float(value))
        case ast.Name("pi"):
            return np.array(math.pi)
        case ast.Name(name):
            v = values[in_order(name)].numpy()
            return v[0] if v.ndim == 2 else v
        case ast.Subscript(ast.Name(name), ast.Constant(index)):
            return values[in_order(name)].numpy()[index]
        case ast.UnaryOp(sign, operand):
            v = by_numpy(operand, values)
            return -v if isinstance(sign, ast.USub) else v
        case ast.BinOp(left, ast.Pow(), right):
            return by_torch("pow", by_numpy(left, values), by_numpy(right, values))
        case ast.BinOp(left, operator, right):
            return OPERATORS[type(operator)](by_numpy(left, values), by_numpy(right, values))
        case ast.Call(ast.Name(name), [argument]):
            return by_torch(name, by_numpy(argument, values))
    raise AssertionError(ast.dump(node))


def texts(names: Names) -> st.SearchStrategy[str]:
    """Expressions of the grammar, most without parentheses, so that precedence counts."""
    order = st.lists(st.sampled_from(range(names.coordinates)), min_size=1, max_size=2).map(sorted)
    outputs = st.just("u") | order.map(lambda index: "".join(f"d{k}" for k in index))
    if names.components > 1:
        outputs = st.builds("{}[{}]".format, outputs, st.sampled_from(range(names.components)))
    inputs = st.sampled_from([f"x{k}" for k in range(names.coordinates)])
    numbers = st.sampled_from(["0", "1", "2.5", "3", "1e-3", "0.01", ".5", "pi"])
    spaces = st.sampled_from(["", " "])

    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        binary = st.builds("{0}{3}{1}{3}{2}".format, inner, st.sampled_from("+-*/"), inner, spaces)
        power = st.builds(
            "({})**{}".format, inner, st.sampled_from(["2", "3", "-1", "0.5", "u" if names is ONE else "2"])
        )
        call = st.builds("{}({})".format, st.sampled_from(list(FUNCTIONS)), inner)
        return binary | power | call | inner.map("-{}".format) | inner.map("+{}".format) | inner.map("({})".format)

    return st.recursive(outputs | outputs | inputs | numbers, larger, max_leaves=12)


@pytest.mark.parametrize("names", [ONE, SEVERAL], ids=["one component", "several"])
def test_they_mean_what_numpy_makes_of_the_same_tree(names: Names) -> None:
    @settings(max_examples=300, deadline=None)
    @given(text=texts(names), seed=st.integers(0, 100))
    def holds(text: str, seed: int) -> None:
        try:
            parsed = parse_expression(text, names)
        except hrt.InputError as error:
            assert "exponent beyond" in str(error)  # such as 3**(1/0), or (...)**x of a number: refused as they should
            assume(False)
        values = values_of(names, parsed.derivatives, seed)
        with np.errstate(all="ignore"):
            expected = by_numpy(ast.parse(text, mode="eval").body, values)
        np.testing.assert_array_equal(parsed.evaluate(values).numpy(), expected)
        named = {n.id for n in ast.walk(ast.parse(text, mode="eval")) if isinstance(n, ast.Name)}
        assert set(parsed.derivatives) == {n for n in named if n[0] == "d"}

    holds()


POWERS = {
    "x0**2": lambda x: x**2,
    "x0**3": lambda x: x**3,
    "x0**-1": lambda x: 1 / x,
    "abs(x0)**0.5": lambda x: abs(x) ** 0.5,
    "2**x0": lambda x: 2.0**x,
    "abs(x0)**x0": lambda x: abs(x) ** x,
}


@pytest.mark.parametrize("text, function", [*((f"{k}(x0)", f) for k, f in NUMPY.items()), *POWERS.items()])
def test_functions_are_numpys(text: str, function) -> None:
    """Both are a few ulps of the result off the exact value: 4 each."""
    values = values_of(ONE, ())
    with np.errstate(all="ignore"):
        expected = function(values["x0"].numpy())
    np.testing.assert_allclose(
        parse_expression(text, ONE).evaluate(values).numpy(),
        expected,
        rtol=8 * np.finfo(float).eps,
        atol=0,
        equal_nan=True,
    )
    assert np.isfinite(expected).any()


def test_precedence_is_pythons() -> None:
    for text, expected in (("-2**2", -4), ("2**3**2", 512), ("2*3+4", 10), ("1-2-3", -4), ("8/4/2", 1), ("2**-1", 0.5)):
        assert float(parse_expression(text, ONE).evaluate({})) == expected


def test_every_derivative_is_asked_once_under_one_name() -> None:
    assert parse_expression("d1d0 + d0d1 * d0 + d0 + u", ONE).derivatives == ("d0d1", "d0")


def test_a_sum_of_many_terms_and_no_more() -> None:
    assert float(parse_expression("+".join(["1"] * DEPTH), ONE).evaluate({})) == DEPTH
    with pytest.raises(hrt.InputError, match=f"more than {DEPTH} operations"):
        parse_expression("+".join(["1"] * (DEPTH + 2)), ONE)


MISTAKES = [
    ("u + d01", "the name 'd01' at column 5"),
    ("u_x", "the name 'u_x' at column 1"),
    ("d0 + v", "the name 'v' at column 6"),
    ("(d0 +\n v)", "the name 'v' at line 2, column 2"),
    ("(d0 +\r v)", "the name 'v' at line 2, column 2"),
    ("  é + u", "the name 'é' at column 3"),
    ("x0*é*w", "the name 'é' at column 4"),
    ("d2", "the name 'd2'"),
    ("x2", "the name 'x2'"),
    ("d0" * 9, "the name 'd0d0"),
    ("d" + "9" * 3000, "the name 'd9999"),
    ("sin", "the name 'sin'"),
    ("u[1]", "u with the index 1"),
    ("u[-1]", "subscript 'u\\[-1\\]'"),
    ("u[0][0]", "subscript"),
    ("x0[0]", "the input x0 with an index"),
    ("u ^ 2", r"\^, where a power is written \*\*"),
    ("d1 = u", "invalid syntax at column 4"),
    ("", "invalid syntax"),
    ("2**101", "an exponent beyond 100 at column 4"),
    ("u**(100*100)", "an exponent beyond 100"),
    ("u**(1/0)", "an exponent beyond 100"),
    ("u**sin(pi*1e9)**-99", "an exponent beyond 100"),
    ("1e999", "a number beyond float64"),
    ("9" * 400, "a number beyond float64"),
    ("9" * (LENGTH + 1), f"of {LENGTH + 1} characters"),
    ("(" * 250 + "u" + ")" * 250, "too many nested parentheses"),
    ("-" * 3000 + "u", ""),
    ("sin(u, u)", "sin of something else than one argument"),
    ("sin(x=u)", "sin of something else"),
    ("sinh(u)", "the function 'sinh'"),
    ("__import__('os').system('true')", "call"),
    ("eval('1')", "the function 'eval'"),
    ("u.real", "attribute 'u.real'"),
    ("().__class__", "attribute"),
    ("True", "constant 'True'"),
    ("u if u else u", "ifexp"),
    ("u < 1", "compare"),
    ("~u", "unaryop"),
    ("u % 2", "binop"),
    ("(u, u)", "tuple"),
    ("lambda: u", "lambda"),
    ("(u := 1)", "namedexpr"),
    ("yield", "invalid syntax"),
    ("u\0", "null bytes"),
    ("\ud800", "surrogates"),
]


@pytest.mark.parametrize("text, message", MISTAKES, ids=[repr(t)[:30] for t, _ in MISTAKES])
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(hrt.InputError, match=f"Found (?s:.*)(?:{message})(?s:.*)Expected"):
        parse_expression(text, ONE)


def test_several_components_need_an_index() -> None:
    with pytest.raises(hrt.InputError, match=r"d0 without an index at column 8.*index 0 to 3 as in u\[0\]"):
        parse_expression("u[3] + d0", SEVERAL)
    with pytest.raises(hrt.InputError, match=r"u with the index 4"):
        parse_expression("u[4]", SEVERAL)


PIECES = [*"ud0x1+-*/()[],.:=^'\n", "**", "sin(", "x0", "d0d1", "[0]", "lambda ", " if ", " else ", "1e9", "pi"]
CHARACTERS = "ud01x[]()+-*/. ,sinexplogqrtabh^=:'\"\n\r\t\\_{}@%!<>#;9e\0"
GARBAGE = (
    st.text(max_size=60)
    | st.text(alphabet=CHARACTERS, max_size=40)
    | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
)


@settings(max_examples=1000, deadline=None)
@given(text=GARBAGE)
@example("d0d0d1d0[0]")
def test_garbage_is_refused_or_means_what_numpy_makes_of_it(text: str) -> None:
    try:
        parsed = parse_expression(text, ONE)
    except hrt.InputError as error:
        assert "Found" in str(error) and "Expected" in str(error)
        return
    values = values_of(ONE, parsed.derivatives)
    with np.errstate(all="ignore"):
        expected = by_numpy(ast.parse(text.strip(), mode="eval").body, values)
    np.testing.assert_array_equal(parsed.evaluate(values).numpy(), expected)
