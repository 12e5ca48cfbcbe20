"""The examples do what they say."""

import re
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_collapse_is_there_without_the_term_and_gone_with_it(capsys):
    runpy.run_path(str(EXAMPLES / "collapse.py"), run_name="__main__")
    found = [int(wells) for wells in re.findall(r"(\d) of 8 wells", capsys.readouterr().out)]
    assert found[0] == 1
    assert found[1] >= 7  # all eight in the record of the experiment `collapse`, but for one seed in some
