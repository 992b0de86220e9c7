"""The free-form sections of a sweep file: what is searched, what is wanted of the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from unlearn.config.layers import Layer
from unlearn.config.sweep_schema import Constraint, Objective, Parameter
from unlearn.errors import ConfigError, did_you_mean

Item = TypeVar("Item")
Result = TypeVar("Result")
RANGE = ("low", "high", "log", "step", "int", "choices", "value", "when")
DIRECTIONS = {"minimize": "minimize", "minimise": "minimize", "maximize": "maximize", "maximise": "maximize"}


class Problems:
    """Sentences about everything that is wrong."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, *sentences: str) -> None:
        """Note them."""
        self.found += sentences

    def attempt(self, work: Callable[[], Result]) -> Result | None:
        """What ``work`` returns; None, and its problems noted, where it fails."""
        try:
            return work()
        except ConfigError as error:
            self.found += error.problems
            return None

    def each(self, read: Callable[[Any], Item], items: Iterable[Any]) -> list[Item]:
        """``read`` of every item that can be read."""
        made = [self.attempt(lambda item=item: read(item)) for item in items]  # type: ignore[misc]
        return [item for item in made if item is not None]

    def stop(self) -> None:
        """Raise ``ConfigError`` with what was noted, each once."""
        if self.found:
            raise ConfigError(list(dict.fromkeys(self.found)))


def read_search(layers: Sequence[Layer], problems: Problems) -> tuple[Parameter, ...]:
    """The parameters, those that conditions speak of before those that have the conditions."""
    ranges: dict[str, tuple[Layer, list[Any]]] = {}
    for layer in layers:
        given = layer.tree.get("search", {})
        if not isinstance(given, Mapping):
            problems.add(layer.problem("search", f"must be a mapping of a run's keys to ranges or choices; found {given!r}."))
            continue
        for key, value in _flat(given).items():
            before = ranges.get(key, (layer, []))[1]
            if isinstance(value, Mapping) and len(before) == 1 and isinstance(before[0], Mapping):
                value = {**before[0], **value}
            ranges[key] = layer, value if isinstance(value, list) else [value]
    if not ranges:
        problems.add(_at(layers, "search", "must name at least one key of a run with its range or choices; found none."))
    parameters = [
        made
        for key, (layer, alternatives) in ranges.items()
        for number, one in enumerate(alternatives)
        if (made := _parameter(layer, key, number if len(alternatives) > 1 else None, one, problems)) is not None
    ]
    return _ordered(parameters, layers, problems)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys with what stands for a range, a list of ranges, or what is neither."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and _is_section(value):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _is_section(value: Mapping[str, Any]) -> bool:
    """Whether keys of a run, not those of a range, stand in ``value``."""
    return bool(value) and not set(RANGE) & value.keys() and all(isinstance(v, Mapping | list) for v in value.values())


def _at(layers: Sequence[Layer], key: str, text: str) -> str:
    """A sentence about a key, under the name of the layer that has it, else of the first."""
    return next((layer for layer in layers if key in layer.tree), layers[0]).problem(key, text)


def _parameter(layer: Layer, key: str, number: int | None, given: Any, problems: Problems) -> Parameter | None:
    where = f"search.{key}" if number is None else f"search.{key}[{number}]"
    if not isinstance(given, Mapping):
        problems.add(layer.problem(where, f"must be a range ({{low, high}}) or choices ({{choices: [...]}}); found {given!r}."))
        return None
    wrong = [k for k in given if k not in RANGE]
    for k in wrong:
        hint = did_you_mean(str(k), RANGE) or f" Known keys here: {', '.join(RANGE)}."
        problems.add(layer.problem(f"{where}.{k}", f"is not a known key of a range.{hint}"))
    when = _when(layer, where, given.get("when"), problems)
    name = key if number is None else f"{key} [{', '.join(_said(when)) or number}]"
    said = "value" in given or "choices" in given
    if said and {"low", "high", "log", "step"} & given.keys():
        problems.add(layer.problem(where, "must be either a range (low, high) or choices; found both."))
    elif said:
        choices = [given["value"]] if "value" in given else given["choices"]
        if isinstance(choices, list) and choices and not wrong:
            return Parameter(key=key, name=name, choices=tuple(choices), when=when)
        if not wrong:
            problems.add(layer.problem(f"{where}.choices", f"must be a list of at least one value; found {choices!r}."))
    elif not wrong:
        return _range(layer, where, Parameter(key=key, name=name, when=when), given, problems)
    return None


def _said(when: Mapping[str, tuple[Any, ...]]) -> list[str]:
    return ["|".join(map(str, allowed)) for allowed in when.values()]


def _when(layer: Layer, where: str, given: Any, problems: Problems) -> dict[str, tuple[Any, ...]]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        problems.add(layer.problem(f"{where}.when", f"must be a mapping of a searched key to the values it must have; found {given!r}."))
        return {}
    return {key: tuple(value) if isinstance(value, list) else (value,) for key, value in _conditions(given).items()}


def _conditions(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _conditions(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _range(layer: Layer, where: str, empty: Parameter, given: Mapping[str, Any], problems: Problems) -> Parameter | None:
    numbers: dict[str, Any] = {}
    wrong: list[str] = []
    for name in ("low", "high", "step"):
        value = given.get(name)
        if value is None and name == "step":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            wrong.append(layer.problem(f"{where}.{name}", f"must be a number; found {'nothing' if value is None else repr(value)}."))
        numbers[name] = value
    flags = {"log": given.get("log", False), "int": given.get("int", False)}
    wrong += [layer.problem(f"{where}.{k}", f"must be true or false; found {v!r}.") for k, v in flags.items() if not isinstance(v, bool)]
    if not wrong:
        wrong += [layer.problem(where, text) for text in _range_problems(numbers, flags)]
    problems.add(*wrong)
    if wrong:
        return None
    return Parameter(
        key=empty.key, name=empty.name, when=empty.when, low=numbers["low"], high=numbers["high"], step=numbers.get("step"),
        log=flags["log"], integer=flags["int"],
    )  # fmt: skip


def _range_problems(numbers: Mapping[str, Any], flags: Mapping[str, Any]) -> list[str]:
    low, high, step = numbers["low"], numbers["high"], numbers.get("step")
    rules = (
        (low < high, f"must have low < high; found {low!r} and {high!r}."),
        (not flags["log"] or low > 0, f"must have low > 0 on a logarithmic scale; found {low!r}."),
        (step is None or not flags["log"], "must have either log or step; found both."),
        (step is None or step > 0, f"must have step > 0; found {step!r}."),
        (not flags["int"] or all(x is None or x == round(x) for x in (low, high, step)), "must have whole numbers with int: true."),
    )
    return [text for ok, text in rules if not ok]


def _ordered(parameters: Sequence[Parameter], layers: Sequence[Layer], problems: Problems) -> tuple[Parameter, ...]:
    """What a condition speaks of first; a condition on something else is a problem."""
    origin = next((layer.label for layer in layers if "search" in layer.tree), "")
    problems.add(*(f"{origin}: {text}" if origin else text for p in parameters for text in _unmet(p, parameters)))
    done: list[Parameter] = []
    left = list(parameters)
    while left:
        waiting = {p.key for p in left}
        ready = [p for p in left if not (p.when.keys() & waiting)]
        if not ready:
            problems.add(_at(layers, "search", f"must have no conditions in a circle; found one among {', '.join(sorted(waiting))}."))
            break
        done += ready
        left = [p for p in left if p not in ready]
    return tuple(done)


def _unmet(p: Parameter, parameters: Sequence[Parameter]) -> Iterator[str]:
    """What is wrong with the conditions of a parameter."""
    for key, allowed in p.when.items():
        offered = [value for other in parameters if other.key == key for value in other.choices]
        where = f"search.{p.key}.when.{key}"
        if not offered:
            hint = did_you_mean(key, [other.key for other in parameters if other.choices])
            yield f"{where} must be a searched key with choices.{hint}"
        for value in allowed if offered else ():
            if value not in offered:
                hint = did_you_mean(str(value), map(str, offered))
                yield f"{where} must be one of {', '.join(map(str, offered))}; found {value!r}.{hint}"


def read_objectives(layers: Sequence[Layer], problems: Problems) -> tuple[Objective, ...]:
    """What the results should be."""
    found: dict[str, Objective] = {}
    for layer in layers:
        given = layer.tree.get("objectives", {})
        if not isinstance(given, Mapping):
            problems.add(layer.problem("objectives", f"must be a mapping of result keys to minimize or maximize; found {given!r}."))
            continue
        for key, wanted in given.items():
            if isinstance(wanted, Mapping) and wanted.keys() == {"near"} and isinstance(wanted["near"], int | float):
                found[key] = Objective(key=key, direction="minimize", near=float(wanted["near"]))
            elif isinstance(wanted, str) and wanted in DIRECTIONS:
                found[key] = Objective(key=key, direction=DIRECTIONS[wanted])
            else:
                hint = did_you_mean(wanted, DIRECTIONS) if isinstance(wanted, str) else ""
                text = f"must be minimize, maximize or {{near: NUMBER}}; found {wanted!r}.{hint}"
                problems.add(layer.problem(f"objectives.{key}", text))
    if not any("objectives" in layer.tree for layer in layers):
        problems.add(_at(layers, "objectives", "must name at least one key of the results, as in {forget/accuracy: minimize}; found none."))
    return tuple(found.values())


def read_constraints(layers: Sequence[Layer], problems: Problems) -> tuple[Constraint, ...]:
    """What the results must be."""
    found: dict[str, Constraint] = {}
    for layer in layers:
        given = layer.tree.get("constraints") or {}
        if not isinstance(given, Mapping):
            problems.add(layer.problem("constraints", f"must be a mapping of result keys to {{low}} or {{high}}; found {given!r}."))
            continue
        for key, bounds in given.items():
            ok = isinstance(bounds, Mapping) and bounds and bounds.keys() <= {"low", "high"}
            if ok and all(isinstance(v, int | float) and not isinstance(v, bool) for v in bounds.values()):
                found[key] = Constraint(key=key, **{name: float(value) for name, value in bounds.items()})
            else:
                text = f"must be bounds, such as {{low: 0.95}} or {{low: 0, high: 1}}; found {bounds!r}."
                problems.add(layer.problem(f"constraints.{key}", text))
    return tuple(found.values())
