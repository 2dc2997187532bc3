"""Constants out of Python source, read as syntax: tuples of strings, and of lambdas that make a prompt from a name."""

import ast


def assigned(source: str, name: str) -> ast.expr:
    """The expression that a module assigns to `name`. ValueError if there is none."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in node.targets
        ):
            return node.value
    raise ValueError(f"the module assigns nothing to {name}")


def strings(source: str, name: str) -> list[str]:
    """A tuple or list of string constants."""
    value = ast.literal_eval(assigned(source, name))
    if not isinstance(value, tuple | list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} is no tuple of strings")
    return list(value)


def templates(source: str, name: str) -> list[str]:
    """A tuple of `lambda c: f"... {c} ..."` as templates with one `{}`."""
    value = assigned(source, name)
    if not isinstance(value, ast.Tuple | ast.List):
        raise ValueError(f"{name} is no tuple")
    return [_template(item, f"{name}[{index}]") for index, item in enumerate(value.elts)]


def _template(node: ast.expr, where: str) -> str:
    if not (
        isinstance(node, ast.Lambda) and isinstance(node.body, ast.JoinedStr) and len(node.args.args) == 1
    ):
        raise ValueError(f"{where} is no lambda of one argument with a formatted string")
    parts = []
    for part in node.body.values:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            parts.append(part.value)
        elif (
            isinstance(part, ast.FormattedValue)
            and isinstance(part.value, ast.Name)
            and part.value.id == node.args.args[0].arg
            and part.conversion == -1
            and part.format_spec is None
        ):
            parts.append("{}")
        else:
            raise ValueError(f"{where} formats something else than the class name")
    template = "".join(parts)
    if template.count("{}") != 1:
        raise ValueError(f"{where} names the class {template.count('{}')} times: {template!r}")
    return template
