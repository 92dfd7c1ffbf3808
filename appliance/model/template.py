"""The chat template of a model, in the environment it was written for: that of Hugging Face's transformers.

Three things differ, and none shows in an ordinary conversation. What the template writes itself is told
from what users wrote (`authored`); everything it does is counted (`budget`); and methods of values other
than texts, lists and dictionaries are not to be had.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS as THEIRS
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Cycler, Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import escape

from appliance.model import authored
from appliance.model.budget import LARGEST, TooCostly, bounded, check_int, make_room, measure, take

LONGEST_SOURCE = 500_000  # characters; the longest template in use has a tenth
_MESSAGE = 500
_SHORT = 8192
"""Characters of what the filters may take that no chat template needs, and that are slow or make much."""
_SLOW = ("pprint", "striptags", "truncate", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr")
_METHODS: dict[type, frozenset[str]] = {
    dict: frozenset(("get", "items", "keys", "values", "copy")),
    list: frozenset(("index", "count", "copy")),
    tuple: frozenset(("index", "count")),
    LoopContext: frozenset(("cycle", "changed")),
    Cycler: frozenset(("next", "reset")),
}
ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template can run into with messages it was not made for."""


class ChatTemplate:
    """A compiled template. Thread-safe.

    Attributes:
        source: as it was written.
    """

    def __init__(self, source: str) -> None:
        """Compile `source`.

        Raises:
            jinja2.TemplateError: it is no template, or uses what there is not.
        """
        if len(source) > LONGEST_SOURCE:
            raise jinja2.TemplateError(f"it is longer than {LONGEST_SOURCE:,} characters")
        self.source = source
        environment = _Environment()
        code = environment.compile(_Provenance(environment).visit(environment.parse(source)))
        self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None))

    def render(self, **values: Any) -> str:
        """What the template makes of these values: `Text` where it wrote something itself.

        Raises:
            ERRORS: it refuses them, or it costs too much.
        """
        with bounded():
            return self._template.render(**values)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what a model says; it changes nothing here."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own way)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Formatter(SandboxedFormatter):
    """`str.format`, piece by piece, so that what the template wrote stays known."""

    def format_field(self, value: Any, format_spec: str) -> str:
        authored.check_format(format_spec)
        measure(value)
        return str(super().format_field(value, format_spec))

    def write(self, text: str, args: Sequence[Any], values: Mapping[str, Any]) -> str:
        whole = authored.spans(text) == ((0, len(text)),)
        pieces: list[str] = []
        number = 0
        for literal, field, spec, conversion in self.parse(text):
            pieces.append(authored.authored(literal) if whole else literal)
            if field is None:
                continue
            if not field or field[0] in ".[":
                field, number = f"{number}{field}", number + 1
            form = f"!{conversion}" if conversion else ""
            pieces.append(self.vformat(f"{{{field}{form}:{spec}}}", args, values))
        return authored.join(pieces)


class _Namespace(Namespace):
    """As transformers has it: no names with underscores. In print it does not show what it holds."""

    def __init__(*args: Any, **values: Any) -> None:
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **values)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))
    concat = staticmethod(authored.join)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,  # it computes constants while it compiles, uncounted
            finalize=_finalize,
        )
        self.filters = {name: _counted(filter_) for name, filter_ in {**self.filters, **_FILTERS}.items()}
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=_refuse,
            strftime_now=_strftime_now,
            namespace=_Namespace,
            dict=_make_dict,
            range=_range,
        )

    @property
    def step(self) -> bool:
        """True, and a step is counted."""
        take()
        return True

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        take()
        if isinstance(left, str) and operator == "%":
            return authored.percent(left, right)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return authored.join((left, right))
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(text, str):
                    return authored.repeat(text, times)
                if isinstance(times, int) and isinstance(text, list | tuple):
                    make_room(measure(text)[0] * max(times, 0) * 64)
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length()
            check_int(bits if operator == "**" else bits + right.bit_length())
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, list | tuple):
            measure(result)
        return result

    def call(self, context: Context, function: Any, /, *args: Any, **options: Any) -> Any:
        take()
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            for name in ("_loop_vars", "_block_vars"):  # what Jinja tells functions that want its context
                options.pop(name, None)
            return authored.call(owner, function.__name__, args, options)
        if owner is not None and function.__name__ not in _METHODS.get(type(owner), ()):
            raise SecurityError(f"{function.__name__!r} is not available to chat templates")
        return super().call(context, function, *args, **options)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """A method `format` of a text, which may be called from anywhere, in its bounded form."""
        owner = getattr(value, "__self__", None)
        if not isinstance(owner, str) or value.__name__ not in ("format", "format_map"):
            return None

        def write(*args: Any, **options: Any) -> str:
            values = args[0] if value.__name__ == "format_map" else options
            return _Formatter(self).write(owner, args, values)

        return write


class _Provenance(NodeTransformer):
    """Makes the template's own texts `Text`, and has its loops and what it builds counted."""

    def __init__(self, environment: _Environment) -> None:
        self._environment = environment
        self._written: dict[str, str] = {}

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return self._write(node.data)

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        return self._write(node.value) if isinstance(node.value, str) else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        node.node = self.visit(node.node)
        if not isinstance(node.arg, nodes.Const):
            node.arg = self.visit(node.arg)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        parts = nodes.List([self.visit(part) for part in node.nodes])
        return _filter(parts, "~")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return _filter(self.generic_visit(node), "[]") if node.items else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return _filter(self.generic_visit(node), "[]") if node.items else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        if node.ctx != "load" or not node.items:
            return node
        return _filter(self.generic_visit(node), "[]")

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        step = nodes.EnvironmentAttribute("step")
        node.body.insert(0, nodes.ExprStmt(step))
        if node.test is not None:
            node.test = nodes.And(step, node.test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("step")))
        return node

    def _write(self, text: str) -> nodes.Node:
        """An expression that gives `text`."""
        name = self._written.setdefault(text, f"written_{len(self._written)}")
        setattr(self._environment, name, authored.authored(text))
        return nodes.EnvironmentAttribute(name)


def _filter(node: nodes.Node, name: str) -> nodes.Node:
    return nodes.Filter(node, name, [], [], None, None)


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose calls are counted, and what they make."""

    @wraps(function, updated=("__dict__",))
    def counted(*args: Any, **options: Any) -> Any:
        take()
        result = function(*args, **options)
        if isinstance(result, str):
            make_room(len(result))
        elif isinstance(result, list | tuple):
            take(len(result) // 8)
        return result

    return counted


def _short(name: str) -> Callable[..., Any]:
    """A filter that takes short values only."""
    function = THEIRS[name]

    @wraps(function, updated=("__dict__",))
    def short(*args: Any, **options: Any) -> Any:
        for value in (*args, *options.values()):
            size = len(value) if isinstance(value, str) else measure(value)[0] * 64
            if size > _SHORT or (isinstance(value, int) and abs(value) > _SHORT):
                raise TooCostly(f"the filter {name!r} gets a value that is too long")
        result = function(*args, **options)
        return str.__str__(result) if isinstance(result, str) else result

    return short


def _small(name: str) -> Callable[..., Any]:
    """A filter whose numbers are small."""
    function = THEIRS[name]

    @wraps(function, updated=("__dict__",))
    def small(*args: Any, **options: Any) -> Any:
        if any(isinstance(value, int) and abs(value) > _SHORT for value in (*args[1:], *options.values())):
            raise TooCostly(f"the filter {name!r} gets a number that is too large")
        return function(*args, **options)

    return small


def _text(value: Any) -> str:
    """`str(value)`, if that is not endless."""
    if isinstance(value, str):
        return value
    measure(value)
    return str(value)


@jinja2.pass_context
def _finalize(context: Context, value: Any) -> Any:
    return _text(value)


def _concat(parts: list[Any]) -> str:
    return authored.join(map(_text, parts))


def _bounded_value(value: Any) -> Any:
    measure(value)
    return value


@jinja2.pass_context
def _join(context: Context, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = context.environment.call_filter("map", value, (), {"attribute": attribute}, context)
    return authored.join(map(_text, value), _text(d))


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """As Jinja's: all lines but the first, and those that are empty, unless told otherwise."""
    if isinstance(width, int):
        width = authored.repeat(" ", width)
    text = _text(text)
    lines = authored.call(authored.join((text, "\n")), "splitlines", (), {})
    rest = [line if not (line or blank) else authored.join((width, line)) for line in lines[1:]]
    result = authored.join([*lines[:1], *rest], "\n")
    return authored.join((width, result)) if first else result


def _format(value: str, *args: Any, **options: Any) -> str:
    if args and options:
        raise jinja2.exceptions.FilterArgumentError("can't handle positional and keyword arguments at once")
    return authored.percent(_text(value), options or args)


def _method(name: str) -> Callable[..., Any]:
    def call(value: Any, *args: Any) -> Any:
        return authored.call(_text(value), name, args, {})

    return call


def _title(value: Any) -> str:
    """As Jinja's, which leaves apostrophes alone; what it changes keeps its length as a rule."""
    text = _text(value)
    made = str(THEIRS["title"](str.__str__(text)))
    same = authored.spans(text) == ((0, len(text)),)
    return authored.authored(made) if same else made


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> Any:
    return authored.call(
        _text(value), "replace", (_text(old), _text(new), -1 if count is None else count), {}
    )


def _center(value: Any, width: int = 80) -> Any:
    return authored.call(_text(value), "center", (width,), {})


def _escape(value: Any) -> str:
    text = _text(value)
    make_room(len(text) * 5)
    return str.__str__(escape(str.__str__(text)))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    count, depth = measure(value)
    width = indent if isinstance(indent, int) else len(indent or "")
    make_room(count * (depth * max(width, 0) + sum(map(len, separators or ()))))
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


_FILTERS: dict[str, Callable[..., Any]] = {
    **{name: _short(name) for name in _SLOW},
    **{name: _small(name) for name in ("batch", "slice", "round", "filesizeformat")},
    **{name: _method(name) for name in ("upper", "lower", "capitalize")},
    **dict.fromkeys(("e", "escape", "forceescape"), _escape),
    "~": _concat,
    "[]": _bounded_value,
    "center": _center,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "safe": _text,
    "string": _text,
    "title": _title,
    "tojson": _to_json,
    "trim": lambda value, chars=None: authored.call(_text(value), "strip", (chars,), {}),
}


def _range(*args: int) -> range:
    found = range(*args)
    if len(found) > LARGEST // 64:
        raise TooCostly("it counts too far")
    take(len(found) // 8)
    return found


def _make_dict(*args: Any, **values: Any) -> Any:
    return _bounded_value(dict(*args, **values))


def _strftime_now(form: str) -> str:
    if len(form) > 200:
        raise TooCostly("its form of a date is too long")
    return datetime.now().strftime(form)


def _refuse(message: Any) -> NoReturn:
    raise jinja2.TemplateError(_text(message)[:_MESSAGE])


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no {name!r}")
