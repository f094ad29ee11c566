"""What all rows of one session share."""

from dataclasses import dataclass, field
from pathlib import Path

from bench.measures.link import Side, SideError
from bench.measures.workload import Workload

THREADS = 2


@dataclass
class Session:
    """rounds: how often each side has its turn. peers: the interpreter that holds the peers' libraries."""

    workload: Workload
    rounds: int
    peers: str
    skipped: list[str] = field(default_factory=list)

    @property
    def scratch(self) -> Path:
        """A folder for logs and whatever a row writes."""
        folder = self.workload.folder / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def ours(self, name: str, *arguments: str) -> Side:
        """A side of our own."""
        return Side(name, list(arguments), self.scratch / f"{name}.log")

    def peer(self, name: str, *arguments: str) -> Side | None:
        """A peer's side; None, and a line that says why, where it cannot run."""
        log = self.scratch / f"{name}-{Path(arguments[0]).stem}.log"
        try:
            return Side(name, list(arguments), log, self.peers)
        except SideError as error:
            self.skipped.append(str(error))
            return None
