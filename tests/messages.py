"""The messages of the errors that `utils` can raise, read from its syntax trees."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
GAP = "…"  # what is filled in when the message is made


@cache
def trees() -> dict[str, ast.Module]:
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "utils").rglob("*.py"))
    }


def kinds() -> set[str]:
    """`UserError` and the classes derived from it."""
    classes = [node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found, count = {"UserError"}, 0
    while len(found) > count:
        count = len(found)
        found |= {node.name for node in classes if found & {ast.unparse(base) for base in node.bases}}
    return found


def wordings(node: ast.expr, scope: ast.AST, module: ast.Module, seen: frozenset[str] = frozenset()) -> set[str]:
    """What an expression of strings can say, one for each way through its conditions, with `GAP` for what is not in
    the source.

    A name stands for what is assigned to it in `scope`, a call for what that function of the module returns (neither
    inside itself: `seen`), and a list that is joined for its first line.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    if isinstance(node, ast.JoinedStr):
        return _in_a_row(node.values, scope, module, seen)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _in_a_row([node.left, node.right], scope, module, seen)
    if isinstance(node, ast.IfExp):
        return wordings(node.body, scope, module, seen) | wordings(node.orelse, scope, module, seen)
    if isinstance(node, ast.FormattedValue):
        return wordings(node.value, scope, module, seen)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "join":
        lines = node.args[0]
        return wordings(lines.elts[0], scope, module, seen) if isinstance(lines, ast.List) else {GAP}
    name = ast.unparse(node.func if isinstance(node, ast.Call) else node)
    values = []
    if isinstance(node, ast.Name) and name not in seen:
        assigned = [one for one in ast.walk(scope) if isinstance(one, ast.Assign)]
        values = [one.value for one in assigned if name in map(ast.unparse, one.targets)]
    elif isinstance(node, ast.Call) and name not in seen:
        scope = next((one for one in module.body if isinstance(one, ast.FunctionDef) and one.name == name), node)
        values = [one.value for one in ast.walk(scope) if isinstance(one, ast.Return) and one.value]
    return set().union(*(wordings(value, scope, module, seen | {name}) for value in values)) or {GAP}


def _in_a_row(parts: list[ast.expr], scope: ast.AST, module: ast.Module, seen: frozenset[str]) -> set[str]:
    texts = {""}
    for part in parts:
        texts = {start + end for start in texts for end in wordings(part, scope, module, seen)}
    return {re.sub(f"{GAP}+", GAP, text) for text in texts}


def expressions() -> Iterator[tuple[str, ast.expr, ast.AST, ast.Module]]:
    """(place, expression, innermost function around it or its module, module) of everything in `utils`."""
    for path, module in trees().items():
        # An inner function comes after the one that it is in.
        functions = [one for one in ast.walk(module) if isinstance(one, ast.FunctionDef)]
        scopes = {node: scope for scope in (module, *functions) for node in ast.walk(scope)}
        for node, scope in scopes.items():
            if isinstance(node, ast.expr):
                yield f"{path}:{node.lineno}", node, scope, module


def made(names: set[str]) -> Iterator[tuple[str, str]]:
    """(place, message) of every call of one of these classes of errors."""
    for place, node, scope, module in expressions():
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            yield from ((place, text) for text in sorted(wordings(node.args[0], scope, module)))


def strings() -> set[str]:
    """Everything that could be printed."""
    texts = (parts for parts in expressions() if isinstance(parts[1], (ast.Constant, ast.JoinedStr, ast.BinOp)))
    return set().union(*(wordings(node, scope, module) for _, node, scope, module in texts))
