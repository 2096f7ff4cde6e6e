"""The syntax of prompt templates: which parts of Jinja's syntax tree may be in one.

The tree that Jinja has parsed is walked once. What is not listed here is refused. Members, calls,
loops and operators become filters, by names that nobody can write in a template: so all that a
template does is done by functions of ours, which take steps for it, and neither is an attribute of
an object read nor an object called.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import TemplateAssertionError
from jinja2.visitor import NodeTransformer

from holysheep.template_functions import FILTERS, FUNCTIONS, METHODS, TESTS
from holysheep.template_operators import OPERATORS
from holysheep.template_steps import CHARS_PER_STEP
from holysheep.wording import shortened

# Jinja walks the tree by recursion, with up to eight Python frames a level.
_MAX_LEVELS = 60
_NODES = frozenset(
    """
    Template Output TemplateData If For Assign AssignBlock Name Const List Tuple Dict Pair Keyword
    CondExpr Filter Test Call Getattr Getitem Concat Compare And Or Not Neg Pos Add Sub Mul Div
    FloorDiv Mod
    """.split()  # noqa: SIM905 - thirty quoted words would read worse
)
_ALLOWED_TAGS = ("for", "if", "raw", "set")
_TAGS = {"CallBlock": "call", "FilterBlock": "filter", "FromImport": "from", "Scope": "autoescape"}

FILTERS_OF_THE_TREE: dict[str, Callable[..., Any]] = {
    **FILTERS,
    **OPERATORS,
    **{f".{name}()": method for name, method in METHODS.items()},
    **{f"{name}()": function for name, function in FUNCTIONS.items()},
}


class Checker(NodeTransformer):
    """Refuses what is not allowed, and turns what does something into filters."""

    def __init__(self) -> None:
        # The names that are read of each variable.
        self.members: dict[str, set[str]] = {}
        self._weight = 0
        self._level = 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """The node that stands for ``node``. Raises a ``TemplateSyntaxError``."""
        kind = type(node).__name__
        if kind == "Pow":
            _refuse(node, "the operator '**' is not allowed, only +, -, *, /, //, % and ~")
        if kind == "NSRef":
            _refuse(node, "setting a member is not allowed; setting a variable is")
        if kind not in _NODES:
            _check_name(node, "tag", _TAGS.get(kind, kind.lower()), _ALLOWED_TAGS)
        self._weight += 1
        self._level += 1
        if self._level > _MAX_LEVELS:
            _refuse(node, "it is nested too deeply")
        try:
            return super().visit(node, *args, **kwargs)
        finally:
            self._level -= 1

    def get_visitor(self, node: nodes.Node) -> Any:
        """The method for a kind of node, or ``None`` where only its parts are looked at."""
        return getattr(self, f"_on_{type(node).__name__.lower()}", None)

    def _on_templatedata(self, node: nodes.TemplateData) -> nodes.Node:
        self._weight += len(node.data) // CHARS_PER_STEP
        return node

    def _on_const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, float) and not math.isfinite(node.value):
            _refuse(node, "a number is too large")
        return node

    def _on_name(self, node: nodes.Name) -> nodes.Node:
        if node.name == "self":
            _refuse(node, "the variable 'self' is not allowed; it is Jinja's own")
        return node

    def _on_tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        # Lists have no hash: that of tuples in tuples may take for ever.
        return nodes.List(node.items, lineno=node.lineno) if node.ctx == "load" else node

    def _on_for(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            _refuse(node, "a recursive loop is not allowed; loops within loops are")
        before = self._weight
        self.generic_visit(node)
        # The condition of a loop is run for each item too, so all of it counts; 1 reads the item.
        weight = nodes.Const(1 + self._weight - before)
        node.iter = nodes.Filter(node.iter, "for", [weight], [], None, None, lineno=node.lineno)
        return node

    def _on_concat(self, node: nodes.Concat) -> nodes.Node:
        return self._filter("~", node, node.nodes)

    def _on_compare(self, node: nodes.Compare) -> nodes.Node:
        if len(node.ops) > 1:
            _refuse(node, "a chain of comparisons is not allowed; comparisons with 'and' are")
        return self._filter(node.ops[0].op, node, [node.expr, node.ops[0].expr])

    def _on_arithmetic(self, node: nodes.BinExpr) -> nodes.Node:
        return self._filter(node.operator, node, [node.left, node.right])

    _on_add = _on_sub = _on_mul = _on_div = _on_floordiv = _on_mod = _on_arithmetic

    def _on_getattr(self, node: nodes.Getattr) -> nodes.Node:
        if node.attr.startswith("__"):
            # It could not be rendered anyway; said here, it is said before any call is made.
            _refuse(node, f"the attribute {node.attr!r} is not allowed; keys and items are")
        return self._member(node, node.node, nodes.Const(node.attr))

    def _on_getitem(self, node: nodes.Getitem) -> nodes.Node:
        if not isinstance(node.arg, nodes.Slice):
            return self._member(node, node.node, node.arg)
        if node.arg.step is not None:
            _refuse(node, "a slice with a step is not allowed; one like [2:9] is")
        bounds = (node.arg.start, node.arg.stop)
        return self._filter(":", node, [node.node, *(at or nodes.Const(None) for at in bounds)])

    def _member(self, node: nodes.Node, *owner_and_key: nodes.Expr) -> nodes.Node:
        self._remember(*owner_and_key)
        return self._filter(".", node, owner_and_key)

    def _on_filter(self, node: nodes.Filter) -> nodes.Node:
        _check_name(node, "filter", node.name, FILTERS)
        return self._call(node.name, node, [node.node, *node.args])

    def _on_test(self, node: nodes.Test) -> nodes.Node:
        _check_name(node, "test", node.name, TESTS)
        _check_arguments(node, node.name, TESTS[node.name], [node.node, *node.args])
        return self.generic_visit(node)

    def _on_call(self, node: nodes.Call) -> nodes.Node:
        target = node.node
        if isinstance(target, nodes.Getattr):
            _check_name(node, "method", target.attr, METHODS)
            if target.attr == "get":
                self._remember(target.node, *node.args[:1])
            return self._call(f".{target.attr}()", node, [target.node, *node.args])
        name = target.name if isinstance(target, nodes.Name) else "()"
        _check_name(node, "function", name, FUNCTIONS)
        return self._call(f"{name}()", node, node.args)

    def _remember(self, owner: nodes.Expr, *key: nodes.Expr) -> None:
        match owner, *key:
            case nodes.Name(name=variable), nodes.Const(value=str(name)):
                self.members.setdefault(variable, set()).add(name)

    def _call(self, name: str, node: Any, arguments: Sequence[Any]) -> nodes.Node:
        """What the template calls, with the named arguments of ``node``."""
        _check_arguments(node, name, FILTERS_OF_THE_TREE[name], arguments)
        return self._filter(name, node, arguments, node.kwargs)

    def _filter(
        self, name: str, node: nodes.Node, arguments: Sequence[Any], named: Sequence[Any] = ()
    ) -> nodes.Node:
        value, *others = arguments
        return self.generic_visit(
            nodes.Filter(value, name, others, [*named], None, None, lineno=node.lineno)
        )


def _check_arguments(
    node: Any, name: str, function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        _refuse(node, "* and ** before an argument are not allowed")
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments, **{argument.key: argument for argument in node.kwargs})
    except TypeError:
        names = ", ".join(each for each in signature.parameters if each != "value") or "none"
        _refuse(node, f"these arguments of {name!r} are not allowed, only {names}")


def _check_name(place: nodes.Node, kind: str, name: str, allowed: Iterable[str]) -> None:
    if name not in allowed:
        names = ", ".join(sorted(allowed))
        _refuse(place, f"the {kind} {shortened(name, 60)!r} is not allowed, only {names}")


def _refuse(place: nodes.Node, text: str) -> NoReturn:
    raise TemplateAssertionError(text, place.lineno)
