"""Resources of some cells of a sweep: which cells they are of, and what each mistake says."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import InputError
from sweeps.grid import Sweep, load_sweep

SWEEP = """
[grid]
size = ["S", "L", "XL"]
patch_size = [8, 2]
[resources]
threads = 2
"""

RULE = """
[[resources.for]]
size = "XL"
ranks = 8
[[resources.for]]
size = ["L", "XL"]
patch_size = 2
micro_batch = 16
"""


def sweep_of(folder: Path, rules: str) -> Sweep:
    path = folder / "study.toml"
    path.write_text(SWEEP + rules)
    return load_sweep(path)


def test_cells_run_on_what_the_rules_say_and_are_the_same_cells(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, RULE)
    of = {name: sweep.resources_of(cell) for name, cell in sweep.cells()}
    assert {name: (r.ranks, r.micro_batch, r.threads) for name, r in of.items()} == {
        "S-8": (1, None, 2), "S-2": (1, None, 2), "L-8": (1, None, 2),
        "L-2": (1, 16, 2), "XL-8": (8, None, 2), "XL-2": (8, 16, 2),
    }  # fmt: skip
    assert of["S-8"] is sweep.resources
    assert [cell.id for _, cell in sweep.cells()] == [cell.id for _, cell in sweep_of(tmp_path, "").cells()]


def test_a_rule_also_fits_what_no_axis_sets(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, '[[resources.for]]\nblock = "adaln-zero"\n"model.depth" = [12, 24]\nthreads = 4\n')
    assert [sweep.resources_of(cell).threads for _, cell in sweep.cells()] == [4, 4, 4, 4, 2, 2]


def test_an_option_holds_for_every_cell(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, RULE).with_resources({"ranks": 4})
    assert {sweep.resources_of(cell).ranks for _, cell in sweep.cells()} == {4}
    assert {sweep.resources_of(cell).micro_batch for _, cell in sweep.cells()} == {None, 16}
    with pytest.raises(InputError, match=r"^resources.for 1: cells_per_gpu 2 is for cells of one process"):
        sweep_of(tmp_path, RULE).with_resources({"cells_per_gpu": 2})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ('size = "B"\nranks = 8', r"resources.for 1.size: no cell of the grid has 'B'; allowed: 'S', 'L', 'XL'"),
        ("patch_size = [2, 4]\nranks = 8", "resources.for 1.patch_size: no cell of the grid has 4; allowed: 8, 2"),
        ('size = "S"\ndepth = 28\nranks = 8', "no cell of the grid has these values of size, depth together"),
        ('size = "XXL"\nranks = 8', "resources.for 1.size: unknown size 'XXL'; allowed: S, B, L, XL"),
        ('size = "XL"', "resources.for 1: sets no resource; allowed: threads, ranks"),
        ("ranks = 8", "resources.for 1: says for no cells; name a field of theirs"),
        ('size = "XL"\nslots = 8', "resources.for 1.slots: holds for the whole sweep, under \\[resources\\]"),
        (
            'size = "XL"\nrank = 8',
            "resources.for 1.rank: unknown key \\(did you mean ranks\\?\\); allowed: a field of a cell",
        ),
        ('size = "XL"\nranks = 0', "resources.for 1.ranks: should be greater than 0"),
        ("size = []\nranks = 8", "resources.for 1.size: is an empty list"),
        ('size = "XL"\nranks = 8\ngpus = 4', "resources.for 1: gpus 4 contradicts ranks 8"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, rule: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"study\.toml: .*{message}"):
        sweep_of(tmp_path, f"[[resources.for]]\n{rule}\n")


def test_it_has_to_be_a_list_of_tables(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"resources.for: should be tables \[\[resources.for\]\]"):
        sweep_of(tmp_path, 'for = "XL"\n')
