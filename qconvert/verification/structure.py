"""Checks from headers and config.json alone: names, shapes and types, precisions that engines load, the skip list."""

from qconvert.errors import UserError
from qconvert.formats import CONFIG_KEY
from qconvert.recipe import KEEP, Recipe
from qconvert.verification.report import Check, Findings
from qconvert.verification.stored import PLAIN_TYPES, Stored


def check_names(stored: Stored) -> Check:
    """Every tensor of the family's inventory is there, and nothing else."""
    head = "" if stored.has_mtp else f", without a multi-token-prediction head ({stored.family.mtp_prefix}*)"
    more = f", {len(stored.extra)} beyond what it calls for ({stored.extra[0]})" if stored.extra else ""
    findings = Findings(
        "names", f"all {len(stored.inventory) - len(stored.extra):,} weights of this config are there{head}{more}"
    )
    for name in stored.missing:
        findings.add(name, "missing")
    for name, wrong in stored.broken.items():
        findings.add(name, wrong)
    for name in stored.unexpected:
        findings.add(name, "not a tensor of this model")
    return findings.check()


def check_shapes(stored: Stored) -> Check:
    """Shapes and types, of codes and scales too."""
    findings = Findings("shapes", "shapes and types are those of the config")
    tensors = stored.checkpoint.tensors
    for name in stored.kept:
        info, shape = tensors[name], stored.inventory[name]
        if info.shape != shape:
            findings.add(name, f"shape {list(info.shape)}, expected {list(shape)}")
        if info.dtype not in PLAIN_TYPES:
            findings.add(
                name, f"type {info.dtype} of a tensor that is not quantized, expected {', '.join(PLAIN_TYPES)}"
            )
    for name, weight in stored.weights.items():
        shape = stored.inventory[name]
        if len(shape) != 2:
            findings.add(name, f"quantized, although its shape {list(shape)} is no matrix")
            continue
        assert stored.format is not None
        try:
            layout = stored.format.layout(weight.scheme, (shape[0], shape[1]))
        except UserError as error:
            findings.add(name, str(error).replace("\n", ";"))
            continue
        for part, tensor in weight.parts.items():  # the format has checked the types
            if tensors[tensor].shape != layout[part][1]:
                findings.add(tensor, f"shape {list(tensors[tensor].shape)}, expected {list(layout[part][1])}")
    return findings.check()


def check_precision(stored: Stored) -> Check:
    """Nothing is quantized that engines hold in full precision, and tensors which they merge have one precision."""
    findings = Findings(
        "precision", f"{len(stored.weights):,} weights quantized, none that engines need in full precision"
    )
    quantized = stored.quantized
    schemes = {scheme.name for scheme in quantized.values()}
    recipes = {scheme: Recipe("all-linears", stored.family.linear_rules(scheme)) for scheme in schemes}
    for name, scheme in quantized.items():
        if recipes[scheme.name].action(name) == KEEP:
            findings.add(name, f"is quantized to {scheme.name}; engines load it in full precision only")
    groups: dict[str, dict[str, str]] = {}
    for name in (*quantized, *stored.kept):
        group = stored.family.fused_group(name)
        if group is not None:
            precision = quantized[name].name if name in quantized else KEEP
            groups.setdefault(group, {}).setdefault(precision, name)
    for group, precisions in groups.items():
        if len(precisions) > 1:
            mixture = ", ".join(f"{precision} for {name}" for precision, name in precisions.items())
            findings.add(group, f"engines load it as one tensor, but its parts differ in precision: {mixture}")
    return findings.check()


def check_skip_list(stored: Stored) -> Check | None:
    """The modules listed as not converted exist and are not quantized; every matrix in full precision is listed."""
    if stored.format is None:
        return None
    kept = {module_of(name): name for name in stored.kept}
    quantized = {module_of(name) for name in stored.weights}
    block = stored.checkpoint.config[CONFIG_KEY]
    listed = stored.format.excluded(block, kept.keys() | quantized)
    findings = Findings("skip-list", f"{len(listed):,} entries, all that they cover is in full precision")
    for entry, modules in listed.items():
        wrong = sorted(modules & quantized)
        if wrong:
            which = "it" if wrong == [entry] else wrong[0]
            findings.add(
                entry,
                f"listed as not converted, but {which} is quantized: engines would use its codes without scales",
            )
        elif not modules and (stored.has_mtp or stored.family.mtp_prefix.rstrip(".") not in entry):
            findings.add(entry, "listed as not converted, but there is no such module")
    covered = frozenset().union(*listed.values())
    guessed = guessed_by_vllm(stored)
    for module, name in kept.items():
        if module in covered or len(stored.inventory[name]) != 2 or not stored.family.is_skip_listed(name):
            continue
        if module not in guessed:
            findings.add(
                module, "in full precision, but not listed: engines would read it as quantized, without scales"
            )
    if guessed:
        findings.passed += f"; {len(guessed):,} more are without an entry: vLLM guesses them, SGLang does not"
    return findings.check()


def guessed_by_vllm(stored: Stored) -> list[str]:
    """Matrices in full precision that no entry covers and that only vLLM takes for what they are. It does so for linear
    layers, never for experts: these it knows by the module that holds them all."""
    if stored.format is None:
        return []
    block = stored.checkpoint.config[CONFIG_KEY]
    names = [name for name in stored.kept if len(stored.inventory[name]) == 2 and stored.family.is_skip_listed(name)]
    modules = [module_of(name) for name in names]
    covered = frozenset().union(*stored.format.excluded(block, modules).values())
    guessed = stored.format.guessed(block, modules) - covered
    groups = {module: stored.family.fused_group(name) for module, name in zip(modules, names, strict=True)}
    return [module for module in modules if module in guessed and not module.startswith(f"{groups[module]}.")]


def module_of(name: str) -> str:
    """The module path that engines compare with the list; a bare parameter goes by its own name."""
    return name.removesuffix(".weight")
