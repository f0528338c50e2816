"""docs/EQUATIONS.md and the code name the same equations, functions and tests."""

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "EQUATIONS.md").read_text()
CODE = {path: path.read_text() for path in (ROOT / "bdia_exp").rglob("*.py")}
TAG = re.compile(r"\[((?:BDIA|IIA|BELM|gDDIM|EDICT|EDM|DDIM|DEIS|PNDM|CFG|RF|REX)\s[^\[\]]+)\]")


def tags(text: str) -> set[str]:
    """{"BDIA 6-7", "BDIA 23-24"} from "[BDIA 6-7, 23-24]", also over a line's end."""
    found = set()
    for tag in TAG.findall(text):
        paper, places = tag.split(maxsplit=1)
        found |= {f"{paper} {' '.join(place.split())}" for place in re.split(r"[,;]\s*", places)}
    return found


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" |")] for row in rows[2:]]


def names(path: Path, prefix: str) -> set[str]:
    """The names of a file's functions and classes, dotted, after `prefix`."""

    def visit(node: ast.AST, prefix: str):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield prefix + child.name
                yield from visit(child, f"{prefix}{child.name}.")

    return set(visit(ast.parse(path.read_text()), prefix))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "bdia_exp").with_suffix("").parts)


FUNCTIONS = {name: path for path in CODE for name in names(path, module(path) + ".")}
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in names(path, f"{path.relative_to(ROOT / 'tests').as_posix()}::")
}
EQUATIONS = table("Equations in the code")


def test_every_tag_in_the_code_stands_on_the_page_and_the_other_way_round():
    in_table = [tags(row[0]) for row in EQUATIONS]
    assert len(in_table) > 10
    assert all(in_table), "every row names a tag"
    assert set().union(*in_table) == set().union(*map(tags, CODE.values()))


@pytest.mark.parametrize("row", EQUATIONS, ids=lambda row: row[0])
def test_a_row_names_functions_beside_its_tag_and_tests_that_exist(row):
    equation, functions, tests = row
    functions, tests = (set(re.findall(r"`([^`]+)`", cell)) for cell in (functions, tests))
    assert functions
    assert functions <= FUNCTIONS.keys()
    assert tests
    assert tests <= TESTS
    assert tags(equation) <= set().union(*(tags(CODE[FUNCTIONS[name]]) for name in functions))


@pytest.mark.parametrize("named", re.findall(r"`([\w/]+\.py::\w+)`", PAGE))
def test_every_test_that_the_page_names_exists(named):
    assert named in TESTS


def test_tags_are_read_as_they_are_written():
    text = 'see [BDIA 6-7, 23-24], [DDIM D.3 "linear"] and [EDM\n    Alg. 1]; x[EDM] and [other 3]'
    assert tags(text) == {"BDIA 6-7", "BDIA 23-24", 'DDIM D.3 "linear"', "EDM Alg. 1"}
