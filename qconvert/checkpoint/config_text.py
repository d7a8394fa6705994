"""Edits of config.json as text: one key goes in or out, every other character stays.

Parsing and writing the file anew would be simpler and wrong: transformers moves and drops keys that engines read, and
number spellings, key order and white space are the publisher's. Inserting a key and removing it again gives back the
same text.
"""

import json
import re
from typing import Any, NamedTuple

from qconvert.errors import UserError

_SPACE = re.compile(r"\s*")


class _Member(NamedTuple):
    key: str
    begin: int  # of the key's opening quote
    end: int  # behind the value


def insert_key(text: str, key: str, value: Any) -> str:
    """The text of a JSON object with one more key at its end."""
    members = _members(text)
    if any(member.key == key for member in members):
        raise ValueError(f"{key} is there already")
    indent = _indent(text, members)
    block = json.dumps({key: value}, indent=indent)[1:-1].strip()
    if not members:
        return "{\n" + indent + block + "\n}"
    return text[: members[-1].end] + ",\n" + indent + block + text[members[-1].end :]


def remove_key(text: str, key: str) -> str:
    """The text of a JSON object without one of its keys."""
    members = _members(text)
    position = [member.key for member in members].index(key)
    if position > 0:
        return text[: members[position - 1].end] + text[members[position].end :]
    if len(members) > 1:
        return text[: members[0].begin] + text[members[1].begin :]
    return text[: members[0].begin].rstrip() + text[members[0].end :].lstrip()


def _members(text: str) -> list[_Member]:
    """The keys of the outermost object with their places in the text."""
    decoder = json.JSONDecoder()
    members: list[_Member] = []
    position = _skip(text, text.index("{") + 1)
    while text[position] != "}":
        begin = position
        key, position = decoder.raw_decode(text, position)
        position = _skip(text, _skip(text, position) + 1)  # past the colon
        _, end = decoder.raw_decode(text, position)
        members.append(_Member(key, begin, end))
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)
    keys = [member.key for member in members]
    twice = [key for key in set(keys) if keys.count(key) > 1]
    if twice:
        raise UserError(f"config.json says {twice[0]!r} twice", fix="remove one of them")
    return members


def _indent(text: str, members: list[_Member]) -> str:
    """The white space in front of the first key, if it stands on a line of its own."""
    if not members:
        return "  "
    line = text[: members[0].begin].rpartition("\n")
    return line[2] if line[1] and line[2].isspace() else "  "


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
