"""python tests/imports.py [ROOT]: the import graph of ROOT/app in numbers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()))

import grimp


def main() -> None:
    graph = grimp.build_graph("app", cache_dir=None)
    modules = sorted(graph.modules)
    packages = {name.split(".")[1] for name in modules if name.count(".") > 1}
    edges = [(name, other) for name in modules for other in graph.find_modules_directly_imported_by(name)]
    links = {(_package(name), _package(other)) for name, other in edges if _package(name) != _package(other)}
    print(f"{len(modules)} modules, {len(packages)} packages below app: {', '.join(sorted(packages))}")
    print(f"{len(edges)} imports between modules, {len(links)} between packages and single modules of app")
    nodes = {_package(name) for name in modules}
    print(f"{len(nodes)} packages and single modules, the longest chain of them {_depth(links)}")


def _package(module: str) -> str:
    return ".".join(module.split(".")[:2])


def _depth(links: set[tuple[str, str]]) -> int | str:
    """Return the number of layers; a text that names the packages if imports form a cycle."""
    below: dict[str, set[str]] = {}
    for upper, lower in links:
        below.setdefault(upper, set()).add(lower)

    def depth(package: str, path: tuple[str, ...] = ()) -> int:
        if package in path:
            raise ValueError(f"a cycle: {' -> '.join((*path, package))}")
        lowers = below.get(package, ())
        return 1 + max((depth(lower, (*path, package)) for lower in lowers if lower != "app"), default=0)

    try:
        return max(depth(package) for package in list(below) if package != "app")
    except ValueError as error:
        return str(error)


if __name__ == "__main__":
    main()
