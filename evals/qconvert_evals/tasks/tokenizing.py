"""Text to tokens and back, as transformers does it with the same folder.

Special tokens are added as tokenizer.json says, once: a text that already begins with the first one (a chat template
writes it) gets none. Settings in tokenizer.json that cut or pad what is read are switched off.

    prefix   stands in for an empty context: the beginning-of-sequence token, or the end-of-sequence token
    ends     tokens that end an output: those of generation_config.json, config.json and tokenizer_config.json

Left out: tokenizers that are no tokenizer.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qconvert.errors import UserError
from qconvert_evals.corpus import Tokenizer
from qconvert_evals.tasks.chat import CONFIG, token_text
from qconvert_evals.tasks.reasoning import CLOSE, OPEN


class TaskTokenizer(Tokenizer):
    """The tokenizer of a checkpoint folder with its special tokens."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        settings = _json(folder / CONFIG)
        begin, end = (token_text(settings.get(f"{kind}_token")) for kind in ("bos", "eos"))
        configured = [_json(folder / name).get("eos_token_id") for name in ("generation_config.json", "config.json")]
        self.ends = {number for entry in configured for number in _numbers(entry)}
        if end is not None:
            self.ends.add(self._number(end, folder))
        prefix = begin if begin is not None else end
        if prefix is None and not self.ends:
            raise UserError(
                "the tokenizer names neither a first nor a last token",
                where=str(folder / CONFIG),
                expected="bos_token or eos_token, for requests without context and for the end of outputs",
            )
        self.prefix = self._number(prefix, folder) if prefix is not None else min(self.ends)
        self.end_text = end if end is not None else self.decode([min(self.ends)])
        self._prefix_text = self.decode([self.prefix])
        added = self._tokenizer.get_added_tokens_decoder()
        self._hidden = {number for number, one in added.items() if one.special and one.content not in (OPEN, CLOSE)}

    def encode_special(self, text: str, special: bool | None = None) -> list[int]:
        """With special tokens or without; None adds them unless the text begins with the first one already."""
        add = not text.startswith(self._prefix_text) if special is None else special
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add).ids
        return ids

    def visible(self, tokens: list[int]) -> str:
        """Text of an output without special tokens; the tags of a thought stay, whatever the tokenizer calls them."""
        return self.decode([token for token in tokens if token not in self._hidden])

    def _number(self, text: str, folder: Path) -> int:
        number = self._tokenizer.token_to_id(text)
        if number is None:
            raise UserError("a special token is not in the vocabulary", where=str(folder / CONFIG), found=text)
        return int(number)


def _numbers(entry: Any) -> list[int]:
    entries = entry if isinstance(entry, list) else [entry]
    return [one for one in entries if isinstance(one, int)]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError("this file is not JSON", where=str(path), found=str(error)) from error
    return found if isinstance(found, dict) else {}
