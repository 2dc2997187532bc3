"""The project as a whole: what its documents and settings promise about its files."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def project_files() -> list[Path]:
    """Files that are, or would be, committed."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("This is not a git checkout: what belongs to the project is unknown.")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""


def pins(path: Path) -> dict[str, str]:
    """{distribution: version}; fails on a line that is not an exact pin."""
    found = {}
    for line in path.read_text().splitlines():
        line = line.split("#")[0].strip()
        if line:
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
            assert match, f"{path.name}: '{line}' is not an exact pin (name==version)"
            found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    return found


def test_the_gin_folder_does_not_shadow_gin_config():
    assert not list((ROOT / "gin").rglob("__init__.py")), (
        "gin/ as a package would hide the gin-config package"
    )


def test_no_file_names_a_path_of_one_machine():
    absolute = re.compile(r"(?<![\w.:/$~}-])/(?:" + "|".join(["work", "root", "home", "Users"]) + r")/\w")
    offending = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in project_files()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if absolute.search(line)
    ]
    assert not offending, "\n".join(offending)


def test_requirements_are_exact_and_in_the_lock():
    direct, lock = pins(ROOT / "requirements.txt"), pins(ROOT / "requirements.lock")
    assert len(lock) > len(direct)
    wrong = {name: (version, lock.get(name)) for name, version in direct.items() if lock.get(name) != version}
    assert not wrong, f"requirements.txt and requirements.lock differ (run `make lock`): {wrong}"


def third_party_imports() -> dict[str, str]:
    """{top-level module: one file that imports it}, of everything but tests."""
    found = {}
    for path in [*(ROOT / "basic_tf").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            else:
                continue
            for module in modules:
                found.setdefault(module.split(".")[0], str(path.relative_to(ROOT)))
    return {
        name: file
        for name, file in found.items()
        if name not in sys.stdlib_module_names | {"basic_tf", "tools", "tests"}
    }


def test_what_is_imported_is_required():
    direct = pins(ROOT / "requirements.txt")
    distributions = importlib.metadata.packages_distributions()
    missing = []
    for module, file in third_party_imports().items():
        owners = {re.sub(r"[-_.]+", "-", name).lower() for name in distributions.get(module, [])}
        if not owners & set(direct):
            missing.append(f"{file} imports {module}, from {sorted(owners)}: not in requirements.txt")
    assert not missing, "\n".join(missing)


def test_cores_are_counted_in_one_place():
    """os.sched_getaffinity is not everywhere."""
    callers = {
        str(path.relative_to(ROOT))
        for folder in ("basic_tf", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if "sched_getaffinity" in path.read_text()
    }
    assert callers == {"basic_tf/machine.py"}


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_make_targets_are_in_the_help():
    out = subprocess.run(
        ["make", "-s", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True
    ).stdout
    listed = set(re.findall(r"^  make ([a-z0-9-]+) ", out, re.MULTILINE))
    assert listed == make_targets()


def test_make_targets_are_no_files():
    """A folder `data` exists: a target of that name would never be made if it were not phony."""
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(phony) == make_targets()


def test_tools_name_only_targets_and_settings_that_exist():
    wrong = []
    for path in (ROOT / "tools").rglob("*.py"):
        text = path.read_text()
        for target in re.findall(r"(?:\(|: )make ([a-z-]+)\)", text):
            if target not in make_targets():
                wrong.append(f"{path.name}: make {target}")
        for names in re.findall(r"^ .* --settings=([\w,]+)", text, re.MULTILINE):
            wrong += [f"{path.name}: {name}" for name in names.split(",") if f'    "{name}": {{' not in text]
    assert not wrong, "\n".join(wrong)


def test_documents_name_only_what_exists():
    missing = []
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = path.read_text()
        code = re.findall(r"```.*?```|`[^`\n]+`|^ {4}\S[^\n]*$", text, re.DOTALL | re.MULTILINE)
        for span in code:
            for target in re.findall(r"\bmake ([a-z][a-z0-9-]*)", span):
                if target not in make_targets():
                    missing.append(f"{path.name}: make {target}")
            for module in re.findall(r"python -m (basic_tf[\w.]*)", span):
                if not (ROOT / (module.replace(".", "/") + ".py")).exists():
                    missing.append(f"{path.name}: {module}")
            for file in re.findall(r"(?<![\w/.])(?:tools|gin|docs|basic_tf)/[\w/.-]+\.(?:py|gin|md)\b", span):
                if not (ROOT / file).exists():
                    missing.append(f"{path.name}: {file}")
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            if not (path.parent / link).exists():
                missing.append(f"{path.name}: link to {link}")
    assert not missing, "\n".join(missing)


def test_the_readme_writes_a_dataset_that_can_be_read(tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    from basic_tf.data import records

    (program,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        if "RecordWriter" in block
    )
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"\w+\.(?:jpg|png)", program):
        Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(name)
    exec(compile(program, "README.md", "exec"), {})
    source = records.RecordSource.open("data/mine/train.json")
    found = [records.parse_example(payload) for payload in source.read(np.arange(source.count))]
    assert {record.captions for record in found} == {("a cat on a mat",), ("an old tree",)}
    assert all(record.image == Path(record.id).read_bytes() for record in found)


def rooms() -> dict[str, set[str] | None]:
    """From the table of docs/architecture.md: {room: what it may import}; None means everything above it."""
    found = {}
    for names, allowed in re.findall(
        r"^\| `basic_tf/([^`]+)` \|[^|]*\| ([^|]+) \|$",
        (ROOT / "docs/architecture.md").read_text(),
        re.MULTILINE,
    ):
        stem, _, alternatives = names.partition("{")
        listed = alternatives.rstrip("}.py").split(",") if alternatives else [stem]
        for name in listed:
            name = name.rstrip("/").removesuffix(".py")
            if allowed.startswith("all of the above"):
                found[name] = set(found) - set(listed)
            else:
                found[name] = set(re.findall(r"`([\w.]+)`", allowed))
    return found


def test_rooms_import_only_what_the_architecture_allows():
    allowed = rooms()
    assert {"towers", "training", "randomness", "train"} <= set(allowed)
    wrong = []
    for path in sorted((ROOT / "basic_tf").rglob("*.py")):
        name = path.relative_to(ROOT / "basic_tf").with_suffix("").parts
        room = name[0]
        if room == "__init__":
            continue
        if room not in allowed:
            wrong.append(f"docs/architecture.md does not list basic_tf/{room}")
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "basic_tf":
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            for module in modules:
                parts = module.split(".")
                if parts[0] != "basic_tf" or len(parts) == 1 or parts[1] in (room, "__version__"):
                    continue
                if parts[1] not in allowed[room] and ".".join(parts[1:3]) not in allowed[room]:
                    wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, "\n".join(sorted(set(wrong)))
