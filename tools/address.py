"""Move the project to another address: `make address URL=https://github.com/OWNER/NAME`.

`[project.urls]` of pyproject.toml is the address's place; the copies in the chapters and the other files follow.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPOSITORY = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+?)/?")


def pages(repository: str) -> str:
    """Address of the GitHub Pages of a repository; raises ValueError where this is no repository of GitHub."""
    match = REPOSITORY.fullmatch(repository)
    if match is None:
        raise ValueError(f"URL: expected https://github.com/OWNER/NAME, got {repository}")
    return f"https://{match[1].lower()}.github.io/{match[2]}"


def moved(text: str, old: dict[str, str], new: dict[str, str]) -> str:
    """A text with both addresses of the project, and its short name on Colab and in badges, replaced."""
    short = [urls["Repository"].removeprefix("https://github.com/") for urls in (old, new)]
    for before, after in [(old[key], new[key]) for key in ("Repository", "Documentation")]:
        text = text.replace(before, after)
    return re.sub(rf"(?<=/github/){re.escape(short[0])}(?=/blob/)", short[1], text)


def main(repository: str) -> None:
    """Rewrite every tracked text file that names the address."""
    old = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    repository = repository.rstrip("/")
    new = {"Repository": repository, "Documentation": pages(repository)}
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for path in (ROOT / name for name in names):
        if path.suffix in {".ipynb", ".md", ".cff", ".toml", ".yml", ".yaml", ".py"} and path != Path(__file__):
            text = path.read_text()
            if (changed := moved(text, old, new)) != text:
                path.write_text(changed)
                print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(*sys.argv[1:])
