"""What the test Hub keeps, what it was asked, and the trouble that it makes when told to."""

import hashlib
from dataclasses import dataclass, field
from threading import Event
from typing import NamedTuple


class Commit(NamedTuple):
    """A state of a repository."""

    sha: str
    files: dict[str, bytes]
    message: str


class Repo:
    """A repository: its commits, and the branches and tags that point to them."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.add("main", {}, "Create the repository")

    def add(self, branch: str, files: dict[str, bytes], message: str) -> Commit:
        """A new commit at the head of a branch."""
        sha = hashlib.sha1(f"{len(self.commits)} {id(self)} {message}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, files, message)
        self.branches[branch] = sha
        return self.commits[sha]

    def find(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a sha names."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise NotFoundError("RevisionNotFound")
        return self.commits[sha]


class Request(NamedTuple):
    """What was asked, as it came over the wire."""

    method: str
    target: str  # path and query
    headers: dict[str, str]
    body: bytes


@dataclass
class Fault:
    """Trouble with requests that match, as often as `times` says.

    Args:
        match: Regular expression for the method and path.
        action: `hang` until `release` is set, `drop` the connection in the middle of the body, or a status to answer with.
        times: How often.
    """

    match: str
    action: str | int
    times: int = 1
    release: Event = field(default_factory=Event)
    reached: Event = field(default_factory=Event)  # set once a request matched


class NotFoundError(Exception):
    """What isn't there; the code is the Hub's own."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code
