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
    rooms = {(_room(name), _room(other)) for name, other in edges if _room(name) != _room(other)}
    print(f"{len(modules)} modules, {len(packages)} packages below app: {', '.join(sorted(packages))}")
    print(f"{len(edges)} imports between modules, {len(rooms)} between packages and single modules of app")
    both = {_room(name) for name in modules}
    print(f"{len(both)} packages and single modules, the longest chain of them {_depth(rooms)}")


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def _depth(rooms: set[tuple[str, str]]) -> int | str:
    """How many floors they stand on; in words where imports run in a circle."""
    below: dict[str, set[str]] = {}
    for upper, lower in rooms:
        below.setdefault(upper, set()).add(lower)

    def depth(room: str, path: tuple[str, ...] = ()) -> int:
        if room in path:
            raise ValueError(f"a circle: {' -> '.join((*path, room))}")
        return 1 + max((depth(lower, (*path, room)) for lower in below.get(room, ()) if lower != "app"), default=0)

    try:
        return max(depth(room) for room in list(below) if room != "app")
    except ValueError as error:
        return str(error)


if __name__ == "__main__":
    main()
