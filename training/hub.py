"""Pushes to the Hub: only what belongs there, one commit a checkpoint, in the background, and never at a run's cost."""

import logging
import shlex
import shutil
import tempfile
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Condition, Thread
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import disable_progress_bars
from tqdm import tqdm

from training.durable import link_or_copy
from training.redaction import redact

logger = logging.getLogger(__name__)

# Whatever is not named here stays on this machine: logs, TensorBoard, optimiser states, embeddings, half-written files.
PUSHED = (
    "README.md", "run.json", "metrics.json", "best.json", "arguments.yaml", "history.jsonl",
    "curves.png", "retrieval.png", "budget.png", ".eval_results/*.yaml",
    "config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json",
    "adapter_config.json", "adapter_model.safetensors", "probe.json", "probe.safetensors",
    "processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
    "*_mxmclr.py",
)  # fmt: skip
MODEL_FILES = ("config.json", "adapter_config.json")
WAITS = (1, 5, 20, 60)  # seconds before each further attempt
# Refusals that may pass: too slow, a commit of somebody else in between, too many requests.
PASSING_REFUSALS = (408, 409, 412, 423, 425, 429)


@dataclass(frozen=True)
class Destination:
    """A place on the Hub."""

    repo_id: str
    private: bool = False  # if it has to be created
    branch: str | None = None  # created where it isn't there; `main` by default
    tag: str | None = None  # of the last commit

    def command(self, run_dir: Path | str) -> str:
        """The command that pushes a run there."""
        words = ["python", "training/push.py", str(run_dir), "--repo_id", self.repo_id]
        words += ["--private"] if self.private else []
        words += ["--branch", self.branch] if self.branch else []
        words += ["--tag", self.tag] if self.tag else []
        return shlex.join(words)


def model_folder(run_dir: Path | str) -> Path:
    """The folder to push of a run: its own, or the checkpoint that an unfinished run kept last.

    Raises:
        ValueError: If there is no saved model.
    """
    for folder in (Path(run_dir), Path(run_dir) / "checkpoints" / "best"):
        if any((folder / name).is_file() for name in MODEL_FILES):
            return folder
    raise ValueError(
        f"`run_dir` must hold a saved model or adapter, {str(run_dir)!r} has no config.json; train first."
    )


def pushed_files(folder: Path) -> dict[str, Path]:
    """The files that belong on the Hub, by their name there."""
    files = [*folder.iterdir(), *folder.glob(".eval_results/*")]
    named = {path.relative_to(folder).as_posix(): path for path in files if path.is_file()}
    return {name: named[name] for name in sorted(named) if is_pushed(name)}


def is_pushed(name: str) -> bool:
    """Whether a file of this name belongs on the Hub."""
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in PUSHED)


def push_folder(folder: Path | str, to: Destination, message: str, api: HfApi | None = None) -> str:
    """Upload a folder's files in one commit, as whoever is logged in, and return the commit's address.

    Files of ours that an earlier commit has and this folder hasn't go in the same commit; all others stay.

    Raises:
        ValueError: If the folder holds no model, or the tag already names another commit.
    """
    api, files = api or HfApi(), pushed_files(model_folder(folder))
    repo_id = open_repository(to, api)
    old = [name for name in api.list_repo_files(repo_id, revision=to.branch) if is_pushed(name) and name not in files]
    adds = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    commit = api.create_commit(
        repo_id,
        [*adds, *(CommitOperationDelete(path_in_repo=name) for name in old)],
        commit_message=redact(message),
        revision=to.branch,
    )
    if to.tag:
        put_tag(api, repo_id, to.tag, commit.oid)
    return str(commit.commit_url)


def open_repository(to: Destination, api: HfApi) -> str:
    """Create the repository and the branch where they aren't there, and return the full id."""
    repo_id = api.create_repo(to.repo_id, private=to.private or None, exist_ok=True).repo_id
    if to.branch:
        api.create_branch(repo_id, branch=to.branch, exist_ok=True)
    return repo_id


def put_tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    """Let a tag name a commit.

    Raises:
        ValueError: If it names another one: who relies on a tag must not get other weights by it.
    """
    found = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
    if tag not in found:
        api.create_tag(repo_id, tag=tag, revision=commit)
    elif found[tag] != commit:
        raise ValueError(f"The tag {tag!r} of {repo_id} names commit {found[tag][:12]} already; choose another tag.")


class Snapshot(NamedTuple):
    """A checkpoint as it was when its push was asked for."""

    folder: Path
    message: str
    is_last: bool

    def remove(self) -> None:
        """Free its disk."""
        shutil.rmtree(self.folder, ignore_errors=True)


def take_snapshot(folder: Path, below: Path, message: str, is_last: bool) -> Snapshot:
    """A private copy of what is pushed of a folder; weights, which nobody writes to in place, are linked."""
    snapshot = Snapshot(Path(tempfile.mkdtemp(prefix=".push-", dir=below)), message, is_last)
    try:
        for name, path in pushed_files(folder).items():
            target = snapshot.folder / name
            target.parent.mkdir(exist_ok=True)
            link_or_copy(path, target)
    except OSError:
        snapshot.remove()
        raise
    return snapshot


@dataclass
class Pusher:
    """Pushes checkpoints of a run from a thread of its own, the newest first; a failure is logged, never raised.

    A push waits for the one before it. Of several that wait, the newest is made, and the others are left out; so is one
    that keeps failing when a newer one comes. `finish` ends the thread.

    Args:
        run_dir: Folder of the run, where snapshots are kept until they are pushed.
        to: Where to.
        api: Client of the Hub.
        waits: Seconds before each further attempt.
    """

    run_dir: Path
    to: Destination
    api: HfApi = field(default_factory=HfApi)
    waits: tuple[float, ...] = WAITS

    def __post_init__(self) -> None:
        """Start the thread."""
        disable_progress_bars()  # of uploads, which would break into the bar of the training
        self._news = Condition()
        self._waiting: Snapshot | None = None
        self._is_closing = False
        self._not_taken: str | None = None  # why there is no snapshot of the newest checkpoint
        self._failure: str | None = None  # why the newest snapshot was not pushed
        self._thread = Thread(target=self._work, name="push to the Hub", daemon=True)
        self._thread.start()

    def push(self, folder: Path, message: str, is_last: bool = False) -> None:
        """Take a snapshot of a folder, and have it pushed; the last one of a run gets the tag."""
        try:
            snapshot = take_snapshot(folder, self.run_dir, message, is_last)
        except OSError as error:  # a full disk, say
            logger.error("The files to push could not be copied, the run goes on: %s", error)
            self._not_taken = redact(str(error))
            return
        with self._news:
            self._not_taken = None
            if self._waiting is not None:
                self._waiting.remove()
            self._waiting = snapshot
            self._news.notify_all()

    def finish(self) -> bool:
        """Wait until all is pushed, and return whether the last push was made; a failed one is logged with its cure."""
        with self._news:
            self._is_closing = True
            self._news.notify_all()
        name = redact(self.to.repo_id)
        if self._thread.is_alive():
            logger.info("Waiting for the last push to %s.", name)
        failure = None
        try:
            with tqdm(desc=f"pushing to {name}", bar_format="{desc}: {elapsed}", leave=False, disable=None) as line:
                while self._thread.is_alive():
                    self._thread.join(0.5)
                    line.refresh()
        except KeyboardInterrupt:
            failure = "interrupted"
        failure = failure or self._not_taken or self._failure
        if failure:
            command = redact(self.to.command(self.run_dir))
            logger.error(
                "The run is complete in %s, but its last push failed: %s\nRepeat it by: %s",
                self.run_dir,
                failure,
                command,
            )
        return failure is None

    def _work(self) -> None:
        self._try_access()
        while (snapshot := self._next()) is not None:
            try:
                self._failure = self._push(snapshot)
            finally:
                snapshot.remove()

    def _try_access(self) -> None:
        """Say at the start, not after hours, that a push has little hope."""
        try:
            open_repository(self.to, self.api)
        except Exception as error:  # the same may work later
            logger.warning(
                "%s can't be opened on the Hub: %s\nAre you logged in (`hf auth login`), with a token that may write there? "
                "The run goes on, and its pushes will be tried.", self.to.repo_id, redact(str(error)),
            )  # fmt: skip

    def _next(self) -> Snapshot | None:
        """The newest snapshot, once there is one; None when there will be no more."""
        with self._news:
            self._news.wait_for(lambda: self._waiting is not None or self._is_closing)
            snapshot, self._waiting = self._waiting, None
            return snapshot

    def _push(self, snapshot: Snapshot) -> str | None:
        """Push a snapshot, several times if need be, and return why it failed."""
        to = self.to if snapshot.is_last else Destination(self.to.repo_id, self.to.private, self.to.branch)
        failure = None
        for wait in (*self.waits, None):
            try:
                logger.info("Pushed to %s", push_folder(snapshot.folder, to, snapshot.message, self.api))
                return None
            except Exception as error:  # whatever the network does, the run goes on
                error = root_of(error)
                failure = redact(f"{type(error).__name__}: {error}")
                if wait is None or not may_pass(error) or self._is_outdated(wait):
                    break
                logger.warning("Push %r failed, trying again: %s", snapshot.message, failure)
        logger.warning("Push %r was given up, the run goes on: %s", snapshot.message, failure)
        return failure

    def _is_outdated(self, wait: float) -> bool:
        """Whether a newer snapshot came within some seconds."""
        with self._news:
            return self._news.wait_for(lambda: self._waiting is not None, timeout=wait)


def root_of(error: Exception) -> Exception:
    """What the Hub answered, where the client wraps it into an error of a file's upload."""
    is_wrapper = type(error) is RuntimeError and isinstance(error.__cause__, Exception)
    return error.__cause__ if is_wrapper else error  # type: ignore[return-value]


def may_pass(error: Exception) -> bool:
    """Whether the same push may succeed later: not where the Hub or we refused it for what it is."""
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        return status >= 500 or status in PASSING_REFUSALS
    return not isinstance(error, ValueError | HFValidationError)
