"""Countdown numbers: reach a target with +, -, * and / from a handful of numbers.

Every number may be used at most once, and every intermediate result is a positive whole number
in the reference solution. The verifier is more generous: any expression over the given numbers,
each used at most once, that equals the target exactly is right.
"""

from __future__ import annotations

import ast
import random
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from models.tasks.base import closing_value

NAME = "countdown"
MAX_VALUE = 999
MAX_EXPRESSION_CHARS = 200

_SIGNS = str.maketrans({"\u00d7": "*", "\u00f7": "/", "\u2212": "-"})


@dataclass(frozen=True)
class Problem:
    """Numbers, a target, and one way to reach it."""

    text: str
    steps: tuple[str, ...]
    answer: str
    """The reference expression."""
    numbers: tuple[int, ...]
    target: int


def draw(rng: random.Random) -> Problem:
    """A solvable problem of four to six numbers, of which at least three are needed."""
    while True:
        numbers = [rng.choice((rng.randint(1, 10), rng.randint(11, 99))) for _ in range(4)]
        numbers += [rng.randint(1, 99) for _ in range(rng.randint(0, 2))]
        built = _build(rng, numbers, num_steps=rng.randint(2, 4 if len(numbers) > 4 else 3))
        if built is not None and built[1] not in numbers:
            break
    steps, target, expression = built
    shown = rng.sample(numbers, len(numbers))
    listed = ", ".join(str(number) for number in shown)
    text = f"Use the numbers {listed} to make {target}. Each number may be used at most once."
    return Problem(text, tuple(steps), expression, tuple(shown), target)


def is_right(problem: Problem, content: str) -> bool:
    """Whether the closing line holds an expression that is allowed and equals the target."""
    expression = closing_value(content)
    if expression is None or not 0 < len(expression) <= MAX_EXPRESSION_CHARS:
        return False
    expression = expression.split("=")[0].translate(_SIGNS).strip()
    try:
        value, used = _value_of(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False
    return value == problem.target and not used - Counter(problem.numbers)


def _build(
    rng: random.Random, numbers: list[int], num_steps: int
) -> tuple[list[str], int, str] | None:
    """Combine numbers at random; the last result is the target. None at a dead end."""
    pool = [(number, str(number)) for number in rng.sample(numbers, num_steps + 1)]
    steps = []
    for _ in range(num_steps):
        (left, left_text), (right, right_text) = pool.pop(), pool.pop()
        if left < right:
            left, left_text, right, right_text = right, right_text, left, left_text
        signs = ["+"] + ["-"] * (left > right) + ["*"] * (right > 1 and left * right <= MAX_VALUE)
        signs += ["/"] * (right > 1 and left % right == 0)
        sign = rng.choice(signs)
        value = {"+": left + right, "-": left - right, "*": left * right}.get(sign)
        value = left // right if value is None else value
        if value > MAX_VALUE:
            return None
        steps.append(f"{left}{sign}{right}={value}")
        pool.append((value, f"({left_text}{sign}{right_text})"))
    value, text = pool[-1]
    return steps, value, text[1:-1]


def _value_of(node: ast.expr) -> tuple[Fraction, Counter[int]]:
    """The exact value of an expression and the numbers it uses."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value), Counter([node.value])
    if not isinstance(node, ast.BinOp):
        raise ValueError("only whole numbers, + - * / and parentheses are allowed")
    left, left_used = _value_of(node.left)
    right, right_used = _value_of(node.right)
    used = left_used + right_used
    if isinstance(node.op, ast.Add):
        return left + right, used
    if isinstance(node.op, ast.Sub):
        return left - right, used
    if isinstance(node.op, ast.Mult):
        return left * right, used
    if isinstance(node.op, ast.Div):
        return left / right, used
    raise ValueError("only whole numbers, + - * / and parentheses are allowed")
