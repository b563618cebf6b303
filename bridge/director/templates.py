"""Templates of an event map: compiled once, in a sandbox that leaves a template nothing but its variables.

On top of Jinja2's own sandbox the language is made small: no calls, no attributes of objects (a dot reads a key of a
mapping), no imports, macros, assignments or multiplication, no loop in a loop, and a dozen filters. What is not on the
list is refused when the map is loaded, so a map from somewhere else can word captions and do nothing more: it reaches
nothing, and its text cannot outgrow what is put in. Text that comes with an event is only ever the value of a variable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, Undefined, meta, nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import SandboxedEnvironment

from shotstream.bridge.director.text import MAX_CAPTION_BYTES, article, capital, listed, nearest, sentence
from shotstream.runtime.errors import UserError

MAX_TEMPLATE = 4000
"""Characters of one template."""

_LOOP = ("first", "last", "index", "length")
_ALLOWED_NODES = frozenset(
    {
        "Template", "Output", "TemplateData", "Name", "Getattr", "Getitem", "Const", "Filter", "Test", "If", "CondExpr",
        "For", "And", "Or", "Not", "Compare", "Operand", "Concat", "Add", "Sub", "List", "Tuple",
    }
)  # fmt: skip
_KEPT_FILTERS = ("lower", "upper", "trim", "default", "join", "length", "first", "last")


def _listed(values: Sequence[Any], key: str | None = None) -> str:
    """The filter `listed`: texts, or one key of mappings, as "a, b and c"."""
    return listed([str(value if key is None else value[key]) for value in values])


class _Environment(SandboxedEnvironment):
    """Variables are mappings, lists, texts, numbers; a dot or bracket reads a key or an index and nothing else."""

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True)
        self.filters = {name: self.filters[name] for name in _KEPT_FILTERS} | {
            "listed": _listed,
            "article": article,
            "capital": capital,
            "sentence": sentence,
        }
        self.globals.clear()

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, LoopContext) and attribute in _LOOP:
            return getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined):  # it says best itself what is missing
            return obj
        readable = isinstance(obj, Mapping) or (isinstance(obj, list | tuple) and isinstance(argument, int))
        if readable:
            try:
                return obj[argument]
            except (LookupError, TypeError):
                return self.undefined(obj=obj, name=str(argument))
        return self.unsafe_undefined(obj, str(argument))

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        return self.undefined(f"a template cannot reach '{attribute}' of {type(obj).__name__}")


_ENVIRONMENT = _Environment()


@dataclass(frozen=True)
class CaptionTemplate:
    """A compiled template and where it stands: `where` begins every error ("tiny.yaml: rules[3].caption")."""

    where: str
    source: str
    _compiled: Template

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text with single spaces; UserError where a variable or one of its keys does not exist.

        variables: plain data only; the sandbox relies on it."""
        try:
            text = self._compiled.render(variables)
        except TemplateError as error:
            raise UserError(f"{self.where}: {error.message or type(error).__name__}") from None
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise UserError(f"{self.where}: this template fails: {error}") from None
        if len(text.encode("utf-8", "replace")) > MAX_CAPTION_BYTES:
            raise UserError(f"{self.where}: the text is longer than {MAX_CAPTION_BYTES} bytes; write a shorter one")
        return " ".join(text.split())


def compile_template(where: str, source: str, sample: Mapping[str, Any]) -> CaptionTemplate:
    """Compile `source`, which may use the variables of `sample` and the keys that its mappings have.

    Raises UserError for a syntax error, for anything a template may not do, and for unknown variables and keys, also
    in branches that the sample does not take."""
    if len(source) > MAX_TEMPLATE:
        raise UserError(f"{where}: a template has at most {MAX_TEMPLATE} characters, not {len(source)}")
    try:
        tree = _ENVIRONMENT.parse(source)
        _check(where, tree, sample)
        compiled = _ENVIRONMENT.from_string(source)
    except TemplateError as error:
        raise UserError(f"{where}: this template does not compile: {error.message or type(error).__name__}") from None
    except RecursionError:
        raise UserError(f"{where}: this template is nested too deeply") from None
    return CaptionTemplate(where, source, compiled)


def _check(where: str, tree: nodes.Template, sample: Mapping[str, Any]) -> None:
    for node, loops in _walk(tree, 0):
        if isinstance(node, nodes.Call):
            raise UserError(f"{where}: templates call nothing; use a filter: {', '.join(sorted(_ENVIRONMENT.filters))}")
        if type(node).__name__ not in _ALLOWED_NODES:
            raise UserError(f"{where}: templates cannot use '{type(node).__name__.lower()}'")
        if isinstance(node, nodes.For) and (loops > 1 or node.recursive):
            raise UserError(f"{where}: a loop cannot stand inside another loop")
        if isinstance(node, nodes.Filter) and node.name not in _ENVIRONMENT.filters:
            known = nearest(node.name, sorted(_ENVIRONMENT.filters))
            raise UserError(f"{where}: there is no filter '{node.name}'; {known}")
        name = node.attr if isinstance(node, nodes.Getattr) else node.name if isinstance(node, nodes.Name) else ""
        if name.startswith("_") or name == "self":
            raise UserError(f"{where}: templates cannot reach '{name}'")
    for name in sorted(meta.find_undeclared_variables(tree)):
        if name not in sample:
            raise UserError(f"{where}: there is no variable '{name}'; {nearest(name, sample, 30)}")
    for node in tree.find_all(nodes.Getattr):
        _check_key(where, node, sample)


def _check_key(where: str, node: nodes.Getattr, sample: Mapping[str, Any]) -> None:
    if isinstance(node.node, nodes.Name) and isinstance(known := sample.get(node.node.name), Mapping):
        if node.attr in known:
            return
        what = f"{node.node.name}.{node.attr}"
        hint = "declare it under the rule's params" if node.node.name == "params" else nearest(node.attr, known)
        raise UserError(f"{where}: there is no '{what}'; {hint}")


def _walk(node: nodes.Node, loops: int) -> Iterator[tuple[nodes.Node, int]]:
    """Every node with the number of loops it stands in, itself included."""
    loops += isinstance(node, nodes.For)
    yield node, loops
    children: Iterable[nodes.Node] = node.iter_child_nodes()
    for child in children:
        yield from _walk(child, loops)
