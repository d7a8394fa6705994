"""Generated documents: arithmetic with worked steps ("math") and recall and copying ("recall").

Both are built so that a small model can be nearly right without being trivially so: every document states a few things
at random and then says many things that follow from them, by a written rule (math) or by looking them up earlier in the
text (recall). The names are made of syllables and stand in no dictionary, so nothing here comes from anybody's text. A
document is a function of its seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands")
ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
VOWELS = ("a", "e", "i", "o", "u")
COLOURS = (
    "amber",
    "black",
    "blue",
    "brown",
    "green",
    "grey",
    "orange",
    "pink",
    "purple",
    "red",
    "silver",
    "white",
    "yellow",
)
THINGS = (
    "anchor",
    "basket",
    "candle",
    "drum",
    "feather",
    "hammer",
    "kettle",
    "ladder",
    "mirror",
    "needle",
    "pillow",
    "rope",
    "spoon",
)
MATH_CHARACTERS, RECALL_CHARACTERS = 1250, 1700


def math_document(seed: int) -> str:
    """Exercises with every step written out, about 1300 characters."""
    return _until(
        Random(f"math {seed}"), MATH_CHARACTERS, (_addition, _subtraction, _multiplication, _division, _gcd, _sorting)
    )


def recall_document(seed: int) -> str:
    """Tables, facts and sequences that come back later in the same document, about 1800 characters."""
    return _until(Random(f"recall {seed}"), RECALL_CHARACTERS, (_table, _facts, _copy, _swap, _assignments))


def _until(random: Random, characters: int, kinds: tuple[Callable[[Random], str], ...]) -> str:
    parts: list[str] = []
    while sum(map(len, parts)) < characters:
        parts.append(f"[{len(parts) + 1}] {random.choice(kinds)(random)}\n")
    return "\n".join(parts)


def _number(random: Random, least: int = 2, most: int = 5) -> int:
    """A number whose count of digits is drawn evenly."""
    digits = random.randint(least, most)
    return random.randint(10 ** (digits - 1), 10**digits - 1)


def _digits(number: int, count: int) -> list[int]:
    """Ones first."""
    return [number // 10**place % 10 for place in range(count)]


def _addition(random: Random) -> str:
    a, b = _number(random), _number(random)
    lines, carry, count = [f"Add {a} and {b}."], 0, len(str(max(a, b)))
    for place, x, y in zip(PLACES, _digits(a, count), _digits(b, count), strict=False):
        total = x + y + carry
        lines.append(f"{place}: {x} + {y} + {carry} = {total}, write {total % 10}, carry {total // 10}")
        carry = total // 10
    return "\n".join([*lines, f"{a} + {b} = {a + b}", f"Check: {a + b} - {b} = {a}"])


def _subtraction(random: Random) -> str:
    b, a = sorted((_number(random), _number(random)))
    lines, borrow, count = [f"Subtract {b} from {a}."], 0, len(str(a))
    for place, x, y in zip(PLACES, _digits(a, count), _digits(b, count), strict=False):
        left = x - y - borrow
        lines.append(f"{place}: {x} - {y} - {borrow} = {left}, write {left % 10}, borrow {int(left < 0)}")
        borrow = int(left < 0)
    return "\n".join([*lines, f"{a} - {b} = {a - b}", f"Check: {a - b} + {b} = {a}"])


def _multiplication(random: Random) -> str:
    a, b = _number(random, 2, 4), _number(random, 2, 3)
    lines, total = [f"Multiply {a} by {b}."], 0
    for place, digit in zip(PLACES, _digits(b, len(str(b))), strict=False):
        part = a * digit * 10 ** PLACES.index(place)
        lines.append(f"{place}: {a} * {digit} = {a * digit}, shifted {part}, {total} + {part} = {total + part}")
        total += part
    return "\n".join([*lines, f"{a} * {b} = {a * b}", f"Check: {a * b} / {b} = {a}"])


def _division(random: Random) -> str:
    divisor, number = random.randint(2, 12), _number(random, 3, 6)
    lines, rest = [f"Divide {number} by {divisor}."], 0
    for digit in str(number):
        rest = rest * 10 + int(digit)
        quotient = rest // divisor
        lines.append(f"bring {digit}: {rest} = {quotient} * {divisor} + {rest % divisor}")
        rest %= divisor
    quotient = number // divisor
    return "\n".join(
        [
            *lines,
            f"{number} / {divisor} = {quotient} remainder {rest}",
            f"Check: {quotient} * {divisor} + {rest} = {number}",
        ]
    )


def _gcd(random: Random) -> str:
    common = random.randint(2, 30)
    a, b = common * random.randint(5, 99), common * random.randint(5, 99)
    lines, x, y = [f"Greatest common divisor of {a} and {b}."], max(a, b), min(a, b)
    while y:
        lines.append(f"{x} = {x // y} * {y} + {x % y}")
        x, y = y, x % y
    return "\n".join([*lines, f"gcd({a}, {b}) = {math.gcd(a, b)}"])


def _sorting(random: Random) -> str:
    rest = [random.randint(10, 99) for _ in range(random.randint(5, 8))]
    done: list[int] = []
    lines = [f"Sort {_list(rest)} from small to large."]
    while rest:
        least = min(rest)
        rest.remove(least)
        done.append(least)
        lines.append(f"take {least}, sorted {_list(done)}, left {_list(rest)}")
    return "\n".join([*lines, f"Result: {_list(done)}"])


def _list(numbers: list[int]) -> str:
    return "(" + " ".join(map(str, numbers)) + ")"


def _name(random: Random, syllables: int = 3) -> str:
    return "".join(random.choice(ONSETS) + random.choice(VOWELS) for _ in range(syllables))


def _names(random: Random, count: int) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        name = _name(random, random.randint(2, 3))
        if name not in names:
            names.append(name)
    return names


def _table(random: Random) -> str:
    keys = _names(random, random.randint(4, 7))
    rows = {key: (random.choice(COLOURS), random.choice(THINGS), random.randint(100, 999)) for key in keys}
    lines = ["Table: name, colour, thing, number."]
    lines += [f"{key} | {colour} | {thing} | {number}" for key, (colour, thing, number) in rows.items()]
    for key in random.sample(keys, len(keys)):
        colour, thing, number = rows[key]
        lines.append(f"Look up {key}: the colour is {colour}, the thing is a {colour} {thing}, the number is {number}.")
    return "\n".join([*lines, "Repeat: " + ", ".join(f"{key} {rows[key][2]}" for key in keys) + "."])


def _facts(random: Random) -> str:
    people = _names(random, random.randint(3, 6))
    owns = {who: f"{random.choice(COLOURS)} {random.choice(THINGS)}" for who in people}
    lines = [" ".join(f"{who.capitalize()} has a {what}." for who, what in owns.items())]
    for who in random.sample(people, len(people)):
        lines.append(f"Question: what does {who.capitalize()} have? Answer: {who.capitalize()} has a {owns[who]}.")
    return "\n".join(lines)


def _copy(random: Random) -> str:
    words = " ".join(_names(random, random.randint(6, 14)))
    return f"Copy this line three times: {words}\nfirst: {words}\nsecond: {words}\nthird: {words}"


def _swap(random: Random) -> str:
    cups = _names(random, random.randint(3, 4))
    balls = random.sample(COLOURS, len(cups))

    def state() -> str:
        return ", ".join(f"{cup} holds {ball}" for cup, ball in zip(cups, balls, strict=True))

    lines = [f"Start: {state()}."]
    for _ in range(random.randint(2, 4)):
        i, j = random.sample(range(len(cups)), 2)
        balls[i], balls[j] = balls[j], balls[i]
        lines.append(f"Swap {cups[i]} and {cups[j]}: now {state()}.")
    return "\n".join(lines)


def _assignments(random: Random) -> str:
    values = {name: random.randint(10, 9999) for name in _names(random, random.randint(4, 7))}
    lines = [f"let {name} = {value};" for name, value in values.items()]
    lines += [f"print({name}); // {values[name]}" for name in random.choices(list(values), k=len(values) + 2)]
    return "\n".join(lines)
