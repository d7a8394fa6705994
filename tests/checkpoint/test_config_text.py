"""Edits of config.json change one key and not one other character."""

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from qconvert.checkpoint import insert_key, remove_key
from qconvert.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    config=st.dictionaries(st.text(), VALUES, min_size=1), value=VALUES, indent=st.sampled_from([None, 1, 2, "\t"])
)
def test_insert_then_remove_gives_the_same_text(
    config: dict[str, object], value: object, indent: int | str | None
) -> None:
    config.pop("quantization_config", None)
    hypothesis.assume(config)
    text = json.dumps(config, indent=indent) + "\n"
    edited = insert_key(text, "quantization_config", value)
    assert json.loads(edited) == {**config, "quantization_config": value}
    assert remove_key(edited, "quantization_config") == text


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('{"q": {"a": "}"}, "b": 1e-06}', '{"b": 1e-06}'),
        ('{"a": 1, "q": [1, 2], "b": 2}', '{"a": 1, "b": 2}'),
        ('{\r\n  "a": 1,\r\n  "q": 3\r\n}\r\n', '{\r\n  "a": 1\r\n}\r\n'),
        ('{"q": 3}', "{}"),
    ],
)
def test_remove(text: str, want: str) -> None:
    assert remove_key(text, "q") == want


def test_insert_into_empty() -> None:
    assert json.loads(insert_key("{}", "q", [1])) == {"q": [1]}


def test_numbers_keep_their_spelling() -> None:
    text = '{"rms_norm_eps": 1e-06, "rope_theta": 10000000.0}'
    assert insert_key(text, "q", 1).startswith('{"rms_norm_eps": 1e-06, "rope_theta": 10000000.0,')


def test_a_key_twice_is_refused() -> None:
    with pytest.raises(UserError, match="says 'a' twice"):
        insert_key('{"a": 1, "a": 2}', "q", 1)
