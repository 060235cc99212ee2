"""Keeps the conversation that is going on: transcript after every answer, the model's state when it is left.

Whatever cannot be kept is told once, and again when the conversation is left; it never ends the chat.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress

from entmtp_local.chat.conversation import Conversation
from entmtp_local.chat.interrupt import Interrupt
from entmtp_local.chat.store import ELSEWHERE, Claim, Journal, Store, Transcript, check_name, new_name, questions
from entmtp_local.errors import EntMTPError, StateError, TranscriptError, UsageError
from entmtp_local.native.session import Session
from entmtp_local.native.state_file import load_state, save_state

#: A shorter conversation is read again in no time.
MIN_TOKENS = 256
# Of main memory, left to everything else while a state is copied or read.
_SPARE_BYTES = 256 << 20
# Writing more than this takes long enough to be told.
_LARGE_BYTES = 1 << 30


class Keeper:
    """The kept side of a conversation.

    Args:
        store: where.
        session, conversation: what is kept.
        model: of transcripts: `fingerprint` says whose ids they hold.
        identity: what a state file holds for.
        note: tells the user.
        memory: bytes of main memory that are available, None where that is unknown.
    """

    def __init__(
        self,
        store: Store,
        session: Session,
        conversation: Conversation,
        model: Mapping[str, str],
        identity: Mapping[str, str],
        note: Callable[[str], None],
        memory: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.store = store
        self._session, self._conversation = session, conversation
        self._model, self._identity, self._note = dict(model), dict(identity), note
        self._memory = memory
        self._told: set[str] = set()  # of which conversations it was said that their state is not kept
        self._claim: Claim | None = None
        self._begin(Transcript(new_name(), conversation.as_json(), self._model))

    @property
    def name(self) -> str:
        return self._transcript.name

    def new(self) -> None:
        """From now on it is another conversation."""
        self.settle()
        self.close()
        self._begin(Transcript(new_name(), self._conversation.as_json(), self._model))

    def _begin(self, transcript: Transcript, *, is_kept: bool = False) -> None:
        self._transcript = transcript
        self._n_saved = transcript.n_turns if is_kept else 0
        self._why = ""  # the last thing that was to be kept is not

    def journal(self, question: str) -> Journal | None:
        """Where an answer is noted while it is streamed."""
        try:
            if self._claim is None:
                self._claim = self._claimed(self.name)
            return self.store.journal(self.name, question, len(self._conversation.messages))
        except OSError as error:
            self._fail(error)
            return None

    def save(self) -> bool:
        """Replace the transcript, where there is something in it or on the disc."""
        transcript = self._transcript
        transcript.content = self._conversation.as_json()
        transcript.model = self._model
        try:
            if not transcript.n_turns and not self.store.path(self.name).exists():
                self.store.drop_journal(self.name)
                return False
            self.store.save(transcript)
        except OSError as error:
            self._fail(error)
            return False
        self._n_saved, self._why = transcript.n_turns, ""
        return True

    def _fail(self, error: OSError) -> None:
        if not self._why:
            self._note(f"(the conversation cannot be kept in {self.store.folder}: {error.strerror or error})")
        self._why = error.strerror or str(error)

    def settle(self) -> bool:
        """Of a conversation that is left: no files stay of an empty one, and how much of another is not kept is told.

        Returns: whether that is anything.
        """
        n, n_saved = self._transcript.n_turns, self._n_saved
        if not n:
            with suppress(OSError):
                self.store.delete(self.name)
        if not self._why or not n:
            return False
        if not n_saved:
            self._note(f"(this conversation, {questions(n)}, is not kept: {self._why})")
        elif n_saved < n:
            self._note(f"(only the first {n_saved} of {questions(n)} are kept, as {self.name}: {self._why})")
        else:
            self._note(f"({self.name} is kept as it was before the last change: {self._why})")
        return True

    def rename(self, name: str) -> None:
        """Give the conversation another name; there is none of the old one any more.

        Raises: UsageError where it cannot be one or is another conversation's, or where nothing can be kept.
        """
        if check_name(name) == self.name:
            self.save()
            return
        if name in self.store.names():
            raise UsageError(f"there is a conversation {name} already; /load {name} goes on with it, or choose another name.")
        if not self._conversation.messages:
            raise UsageError("there is nothing to save yet.")
        before = self.name
        claim = self._claimed(name)
        self._transcript.name = name
        if not self.save():
            self._transcript.name = before
            if claim is not None:
                claim.drop()
            raise UsageError(f"the conversation cannot be kept in {self.store.folder}: make room there, or let it be written.")
        self.close()
        self._claim = claim
        self.store.delete(before)

    def open(self, name: str) -> Transcript:
        """Go on with a conversation that was kept, from the model's state where that still holds.

        Raises: UsageError where there is none of that name or another process has it, TranscriptError where it cannot be read;
            nothing has changed then.
        """
        check_name(name)
        is_ours = name == self.name and self._claim is not None
        claim = self._claim if is_ours else self._claimed(name)
        try:
            transcript = self.store.load(name)
            same = transcript.model.get("fingerprint") == self._model.get("fingerprint")
            try:
                self._conversation.load(transcript.content, ids=same)
            except TranscriptError as error:
                raise TranscriptError(f"the conversation {self.store.path(name)} is damaged: {error}; {ELSEWHERE}") from None
        except EntMTPError:
            if claim is not None and not is_ours:
                claim.drop()
            raise
        self.settle()
        if not is_ours:
            self.close()
            self._claim = claim
        self._begin(transcript, is_kept=True)
        if transcript.cut:
            self.save()
        if not same and transcript.model:
            self._note("(another model had this conversation; this one reads it anew)")
        self._load_state(name)
        return transcript

    def _claimed(self, name: str) -> Claim | None:
        """Raises: UsageError where another process has it. None: the folder cannot be written, which saving will tell."""
        try:
            return self.store.claim(name)
        except OSError:
            return None

    def close(self) -> None:
        """Let other processes have the conversation."""
        if self._claim is not None:
            self._claim.drop()
            self._claim = None

    def _load_state(self, name: str) -> None:
        path = self.store.state_path(name)
        try:
            n_bytes = path.stat().st_size
        except OSError:
            return
        try:
            self._check_memory(n_bytes)
            self._session.load_state(load_state(path, self._identity))
        except StateError as error:
            self._note(f"({str(error).removesuffix('.')}; the text is read again)")

    def leave(self) -> None:
        """Keep the model's state beside the transcript, where reading it again would take a while."""
        if not self.save() or self._session.n_past < MIN_TOKENS:
            return
        try:
            self._keep_state()
        except (EntMTPError, OSError) as error:
            # the transcript is there, and that is enough
            if self.name not in self._told:
                why = (error.strerror or error) if isinstance(error, OSError) else str(error).removesuffix(".")
                self._note(f"(the model's state is not kept, going on reads the text again: {why})")
            self._told.add(self.name)
        except KeyboardInterrupt:
            return

    def _keep_state(self) -> None:
        """Raises: EntMTPError and OSError, where it cannot be."""
        session, folder = self._session, self.store.folder
        ids = self._conversation.closed()
        n = len(ids)
        # Ctrl-C between passes, not inside: the conversation may go on.
        with Interrupt() as interrupt:
            # The next prompt goes on behind the last answer's end, and computes the last token that is kept again.
            if session.n_past < n < session.n_ctx and tuple(session.tokens) == ids[: session.n_past]:
                session.prefill(ids[:-1], interrupt)
                if session.n_past == n - 1:
                    session.checkpoint()
                    session.prefill(ids, interrupt)
        if interrupt():
            return
        n_copied, n_bytes = session.state_bytes()
        # the file that is there stays until this one is whole, and others need the disc too
        if (free := shutil.disk_usage(folder).free) < 2 * n_bytes:
            raise StateError(f"it has {_mib(n_bytes)}, and {folder} has room for {_mib(free)}.")
        self._check_memory(n_copied)
        if n_bytes >= _LARGE_BYTES:
            self._note(f"(keeping the model's state, {_mib(n_bytes)}: Ctrl-C goes without)")
        with Interrupt() as interrupt:
            state = session.state()
        if interrupt():
            return
        if state is None:
            raise StateError("the engine does not give it.")
        save_state(self.store.state_path(self.name), state, self._identity)
        self.store.forget_old_states()

    def _check_memory(self, n_bytes: int) -> None:
        """Raises: StateError where a copy of a state has no room in main memory."""
        available = self._memory()
        if available is not None and n_bytes + _SPARE_BYTES > available:
            raise StateError(f"it has {_mib(n_bytes)}, and {_mib(available)} of main memory are available.")


def _mib(n_bytes: int) -> str:
    return f"{n_bytes >> 20} MiB"
