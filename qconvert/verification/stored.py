"""What a folder stores, as its config.json and the family's inventory say it should be read: tolerant of damage,
which it records.

`qconvert.formats.open_weights` refuses the first tensor that does not fit. A verification must go on and name all of
them, so it asks the format about one weight at a time.
"""

from dataclasses import dataclass, field

from qconvert.checkpoint import Checkpoint
from qconvert.errors import UserError
from qconvert.families import Family, family_of
from qconvert.formats import Format, StoredWeight, format_of
from qconvert.recipe import KEEP, Recipe
from qconvert.schemes import Scheme

PLAIN_TYPES = ("BF16", "F16", "F32")  # of tensors that are not quantized


@dataclass(frozen=True)
class Stored:
    """A folder by its logical weights. `broken` holds weights whose parts do not fit together, with what is wrong;
    `extra` those that the config does not call for but a rule of the family covers."""

    checkpoint: Checkpoint
    family: Family
    format: Format | None
    inventory: dict[str, tuple[int, ...]]
    weights: dict[str, StoredWeight] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> "Stored":
        """Sort the tensors of a folder; refuses only an unknown family or format."""
        family = family_of(checkpoint.config)
        inventory = family.inventory(checkpoint.config)
        if not any(name.startswith(family.mtp_prefix) for name in checkpoint.tensors):
            # The head may be absent as a whole (Qwen3-Coder-Next), never in part.
            inventory = {name: shape for name, shape in inventory.items() if not name.startswith(family.mtp_prefix)}
        stored = cls(checkpoint, family, format_of(checkpoint.config), dict(inventory))
        known = {part for name in inventory for part in stored.parts(name).values()}
        stored._adopt([name for name in checkpoint.tensors if name not in known])
        for name in stored.inventory:
            stored._sort(name)
        return stored

    @property
    def quantized(self) -> dict[str, Scheme]:
        """The schemes of all quantized weights."""
        return {name: stored.scheme for name, stored in self.weights.items()}

    def parts(self, name: str) -> dict[str, str]:
        """Part to tensor on disk: those of a quantized weight, or all that it could have, its own name included."""
        if name in self.weights:
            return dict(self.weights[name].parts)
        return {"codes": name} | ({} if self.format is None else self.format.part_names(name))

    @property
    def has_mtp(self) -> bool:
        """Whether the multi-token-prediction head is there, in part at least."""
        return any(name.startswith(self.family.mtp_prefix) for name in self.inventory)

    def _adopt(self, names: list[str]) -> None:
        """Tensors beyond the inventory belong to the model if a rule of the family covers them, as for `quantize`."""
        recipe = Recipe("all-linears", self.family.linear_rules(KEEP))
        tensors = self.checkpoint.tensors
        for name in dict.fromkeys(self.format.logical_name(name) if self.format else name for name in names):
            try:
                recipe.action(name)
                stored = self.format.find(name, tensors) if self.format else None
            except UserError:
                continue
            if stored is None and name not in tensors:
                continue
            self.extra.append(name)
            self.inventory[name] = tensors[name].shape if stored is None else stored.shape
        adopted = {part for name in self.extra for part in self.parts(name).values()}
        self.unexpected.extend(name for name in names if name not in adopted)

    def _sort(self, name: str) -> None:
        """Plain, quantized, broken, missing, or in part both of the last."""
        tensors = self.checkpoint.tensors
        there = {part: tensors[part] for part in self.parts(name).values() if part in tensors}
        try:
            found = None if self.format is None else self.format.find(name, there)
        except UserError as error:
            self.broken[name] = str(error).replace("\n", ";")
            return
        if found is not None:
            self.weights[name] = found
        elif name in there:
            self.kept.append(name)
        else:
            self.missing.append(name)
