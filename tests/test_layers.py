"""Who may import what, where import-linter cannot say it."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "bdia_exp"


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importers(module: str) -> set[str]:
    return {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(name == module or name.startswith(module + ".") for name in imports(path))
    }


def test_only_dist_knows_torch_distributed():
    assert importers("torch.distributed") == {
        "dist/__init__.py",
        "dist/launcher.py",
        "dist/pulse.py",
    }


def test_only_the_command_line_knows_click_and_hydra():
    assert importers("click") == {"cli/commands.py"}
    assert importers("hydra") == {"cli/configs.py", "cli/words.py"}
