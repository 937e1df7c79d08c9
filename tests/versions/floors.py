"""Prints constraints for pip: for ``oldest`` the least versions that pyproject.toml allows, else none."""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PINNED = {"torch"}  # every version of it is gigabytes; the gate has one

project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
asked = [*project["dependencies"], *project["optional-dependencies"]["peers"]]
for requirement in map(Requirement, asked):
    least = [one.version for one in requirement.specifier if one.operator == ">="]
    if least and requirement.name not in PINNED and sys.argv[1:] == ["oldest"]:
        sys.stdout.write(f"{requirement.name}=={least[0]}\n")
