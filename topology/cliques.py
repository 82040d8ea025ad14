"""Which devices of a node are joined each with each: the sets that tensor parallelism may use.

Connected is not fully meshed. On a DGX-1V every V100 reaches every other over NVLink, but GPU 0 has
no link of its own to GPU 5, so a group of eight would talk over PCIe; the full meshes are {0-3} and
{4-7}::

    0 --- 1     5 --- 4        inside a quad every pair has a link;
    | \\ / |     | \\ / |        0-4, 1-5, 2-6 and 3-7 join the quads
    | / \\ |     | / \\ |
    3 --- 2     6 --- 7

Sets are bit masks inside this module. Nodes are small: up to `MAX_EXACT` devices every answer is
exact, above that (a CPU node with hundreds of slots) exact for disjoint meshes and greedy for
anything stranger.

Thousands of nodes have few different matrices, though each has devices of its own: answers about a
matrix are remembered.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations

from parctl.topology.links import link_count

MAX_EXACT = 16
MAX_STARTS = 64  # devices from which a full mesh is grown, where not all are looked at
UNKNOWN = "?"

REMEMBERED = 512  # matrices

Matrix = Sequence[Sequence[str]]
Rows = tuple[tuple[str, ...], ...]


def connected_groups(matrix: Matrix) -> tuple[tuple[int, ...], ...]:
    """Sets of devices connected over NVLink or xGMI, by first member, lone ones included."""
    return _connected_groups(_rows(matrix))


@lru_cache(maxsize=REMEMBERED)
def _connected_groups(matrix: Rows) -> tuple[tuple[int, ...], ...]:
    everything = (1 << len(matrix)) - 1
    return tuple(_members(mask) for mask in _components(_neighbours(matrix, _linked), everything))


def full_mesh_cliques(matrix: Matrix) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Cover the devices by disjoint full meshes, largest first, each with its smallest link count.

    Of two sets of one size the better linked is taken, then the one with lower members. Devices
    without any link are in none.

    >>> full_mesh_cliques([["X", "NV2", "SYS"], ["NV2", "X", "SYS"], ["SYS", "SYS", "X"]])
    (((0, 1), 2),)
    """
    return _full_mesh_cliques(_rows(matrix))


@lru_cache(maxsize=REMEMBERED)
def _full_mesh_cliques(matrix: Rows) -> tuple[tuple[tuple[int, ...], int], ...]:
    neighbours = _neighbours(matrix, _linked)
    found: list[tuple[tuple[int, ...], int]] = []
    pending = [sum(1 << i for i in range(len(matrix)) if neighbours[i])]
    while pending:
        # what is not connected does not compete for devices
        for component in _components(neighbours, pending.pop()):
            masks = set(_maximal_cliques(neighbours, component))
            size = max(map(int.bit_count, masks))
            if size < 2:
                continue
            candidates = [_members(mask) for mask in masks if mask.bit_count() == size]
            scored = [(worst_count(matrix, members), members) for members in candidates]
            least = max(count for count, _ in scored)
            best = min(members for count, members in scored if count == least)
            found.append((best, least))
            pending.append(component & ~sum(1 << i for i in best))
    return tuple(sorted(found))


def groups_are_known(matrix: Matrix) -> bool:
    """Whether no unknown link might join two of the connected groups."""
    return connected_groups(matrix) == connected_groups(_assuming(matrix, "NV1"))


def cliques_are_known(matrix: Matrix) -> bool:
    """Whether the full meshes stay the same, whatever the unknown links are.

    Above `MAX_EXACT` devices one unknown link is enough to doubt them.
    """
    if not any(UNKNOWN in row for row in matrix):
        return True
    if len(matrix) > MAX_EXACT:
        return False
    known = full_mesh_cliques(matrix)
    # a weak and a strong link: of two sets of one size the better linked is taken
    return all(full_mesh_cliques(_assuming(matrix, code)) == known for code in ("NV1", "NV99"))


def _assuming(matrix: Matrix, code: str) -> Matrix:
    return [[code if cell == UNKNOWN else cell for cell in row] for row in matrix]


def worst_count(matrix: Matrix, members: Sequence[int]) -> int:
    """The smallest link count between two members; 0 for a lone one."""
    codes = {matrix[i][j] for i, j in combinations(members, 2)}
    return min(map(link_count, codes), default=0)


def pack_meshes(
    matrix: Matrix,
    size: int,
    joined: Callable[[str], bool],
    usable: Sequence[int],
) -> tuple[tuple[int, ...], ...]:
    """As many disjoint full meshes of `size` devices as there can be, linked as well as can be.

    `joined` says which codes count as a link, `usable` which devices may be taken.
    """
    if size == 1:
        return tuple((i,) for i in usable)
    neighbours = _neighbours(matrix, joined)
    allowed = sum(1 << i for i in usable)
    neighbours = [mask & allowed if allowed >> i & 1 else 0 for i, mask in enumerate(neighbours)]
    counts = sorted({link_count(matrix[i][j]) for i, j in combinations(usable, 2)}, reverse=True)
    most = _pack(neighbours, allowed, size)
    for least in counts[:-1]:
        # a packing of the better links alone, if it loses no group
        strong = [
            sum(
                1 << j
                for j in _members(mask)
                if link_count(matrix[i][j]) >= least and link_count(matrix[j][i]) >= least
            )
            for i, mask in enumerate(neighbours)
        ]
        better = _pack(strong, allowed, size)
        if len(better) == len(most):
            return better
    return most


def largest_mesh(matrix: Matrix, joined: Callable[[str], bool], usable: Sequence[int]) -> int:
    """Size of the largest full mesh among the usable devices."""
    return _largest_mesh(_rows(matrix), joined, tuple(usable))


@lru_cache(maxsize=REMEMBERED)
def _largest_mesh(matrix: Rows, joined: Callable[[str], bool], usable: tuple[int, ...]) -> int:
    neighbours = _neighbours(matrix, joined)
    allowed = sum(1 << i for i in usable)
    return max((mask.bit_count() for mask in _maximal_cliques(neighbours, allowed)), default=0)


def _rows(matrix: Matrix) -> Rows:
    """The matrix as something that can be remembered; costs nothing where it is that already."""
    return tuple(map(tuple, matrix))


def _linked(code: str) -> bool:
    return link_count(code) > 0


def _neighbours(matrix: Matrix, joined: Callable[[str], bool]) -> list[int]:
    """Bit mask of the devices joined with each device; a link must be seen from both ends."""
    size = range(len(matrix))
    known = {code: joined(code) for row in matrix for code in row}
    return [
        sum(1 << j for j in size if i != j and known[matrix[i][j]] and known[matrix[j][i]])
        for i in size
    ]


def _members(mask: int) -> tuple[int, ...]:
    members = []
    while mask:
        members.append((mask & -mask).bit_length() - 1)
        mask &= mask - 1
    return tuple(members)


def _components(neighbours: Sequence[int], rest: int) -> Iterator[int]:
    """Connected sets of the devices of `rest`, by first member."""
    while rest:
        group, frontier = 0, rest & -rest
        while frontier:
            group |= frontier
            reached = 0
            for i in _members(frontier):
                reached |= neighbours[i]
            frontier = reached & rest & ~group
        yield group
        rest &= ~group


def _maximal_cliques(neighbours: Sequence[int], allowed: int) -> Iterator[int]:
    """All largest full meshes of small components, some of large ones."""
    for component in _components(neighbours, allowed):
        members = _members(component)
        if all(neighbours[i] & component == component & ~(1 << i) for i in members):
            yield component
        elif len(members) <= MAX_EXACT:
            yield from _all_cliques(neighbours, component)
        else:
            yield from (_grown_from(neighbours, i, component) for i in members[:MAX_STARTS])


def _grown_from(neighbours: Sequence[int], start: int, allowed: int) -> int:
    """A full mesh with this device in it, grown by the lowest neighbour that all others have."""
    clique, candidates = 1 << start, neighbours[start] & allowed
    while candidates:
        lowest = candidates & -candidates
        clique |= lowest
        candidates &= neighbours[lowest.bit_length() - 1]
    return clique


def _all_cliques(neighbours: Sequence[int], allowed: int) -> Iterator[int]:
    """Bron-Kerbosch with pivots (Tomita, Tanaka, Takahashi 2006)."""

    def grow(clique: int, candidates: int, done: int) -> Iterator[int]:
        if not candidates | done:
            yield clique
            return
        pivot = max(
            _members(candidates | done), key=lambda i: (neighbours[i] & candidates).bit_count()
        )
        for i in _members(candidates & ~neighbours[pivot]):
            yield from grow(clique | 1 << i, candidates & neighbours[i], done & neighbours[i])
            candidates &= ~(1 << i)
            done |= 1 << i

    if allowed:
        yield from grow(0, allowed, 0)


def _pack(neighbours: Sequence[int], allowed: int, size: int) -> tuple[tuple[int, ...], ...]:
    """Most disjoint cliques of `size`, component by component."""
    groups: list[tuple[int, ...]] = []
    for component in _components(neighbours, allowed):
        members = _members(component)
        if len(members) < size:
            continue
        if all(neighbours[i] & component == component & ~(1 << i) for i in members):
            groups += [members[i : i + size] for i in range(0, len(members) - size + 1, size)]
        elif len(members) <= MAX_EXACT:
            groups += _pack_exact(neighbours, component, size)
        else:
            groups += _pack_greedy(neighbours, component, size)
    return tuple(sorted(groups))


def _pack_exact(neighbours: Sequence[int], component: int, size: int) -> list[tuple[int, ...]]:
    """Search over what is left, lowest device first: it joins one of its cliques or stays out."""
    best_of: dict[int, tuple[int, ...]] = {}

    def cliques_with(lowest: int, rest: int) -> Iterator[int]:
        for others in combinations(_members(neighbours[lowest] & rest), size - 1):
            mask = sum(1 << i for i in others)
            if all(neighbours[i] & mask == mask & ~(1 << i) for i in others):
                yield mask | 1 << lowest

    def search(rest: int) -> tuple[int, ...]:
        bound = rest.bit_count() // size
        if bound == 0:
            return ()
        if rest in best_of:
            return best_of[rest]
        lowest = (rest & -rest).bit_length() - 1
        best: tuple[int, ...] = ()
        for clique in cliques_with(lowest, rest & ~(1 << lowest)):
            found = (clique, *search(rest & ~clique))
            if len(found) > len(best):
                best = found
            if len(best) == bound:
                break
        else:
            without = search(rest & ~(1 << lowest))
            best = max(best, without, key=len)
        best_of[rest] = best
        return best

    return [_members(mask) for mask in search(component)]


def _pack_greedy(neighbours: Sequence[int], component: int, size: int) -> list[tuple[int, ...]]:
    groups: list[tuple[int, ...]] = []
    rest = component
    while rest:
        group = rest & -rest
        common = neighbours[group.bit_length() - 1] & rest
        while common and group.bit_count() < size:
            lowest = common & -common
            group |= lowest
            common &= neighbours[lowest.bit_length() - 1]
        if group.bit_count() == size:
            groups.append(_members(group))
            rest &= ~group
        else:
            rest &= rest - 1
    return groups
