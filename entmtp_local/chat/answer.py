"""One question and its answer: the prompt, room for it, the stream, what is shown meanwhile, what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from entmtp_local.chat.conversation import Conversation, Prompt
from entmtp_local.chat.progress import ReadingProgress
from entmtp_local.chat.reasoning import opens_reasoning
from entmtp_local.chat.settings import Settings
from entmtp_local.chat.show import Show
from entmtp_local.chat.store import Journal
from entmtp_local.chat.stream import TextStream
from entmtp_local.chat.suspending import Suspensions
from entmtp_local.chat.terminal import Terminal
from entmtp_local.engine import Generation, Stats, Step, generate
from entmtp_local.errors import ContextFullError
from entmtp_local.native.session import Session
from entmtp_local.speculative.copying import CopyDrafter
from entmtp_local.speculative.sampling import MAX_SEED

#: Tokens of the context that are to be free for an answer before the oldest turns are dropped, where that is not most of it.
N_ANSWER = 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question.

    Args:
        text: all of it, reasoning included.
        finish_reason: as of a Generation.
        stats: of all its parts, where turns were dropped meanwhile.
        steps: all of them.
        n_dropped: turns that were dropped to make room.
        policy: that of its drafts.
    """

    text: str
    finish_reason: str
    stats: Stats
    steps: tuple[Step, ...]
    n_dropped: int
    policy: str


class Answerer:
    """Asks a session, and shows what it says.

    Args:
        session: the open session.
        conversation: grows by what is answered.
        settings: as they are at each question.
        stop_texts: the answer ends before the first of these.
        terminal: where to show it.
    """

    def __init__(
        self,
        session: Session,
        conversation: Conversation,
        settings: Settings,
        stop_texts: tuple[str, ...],
        terminal: Terminal,
    ) -> None:
        self._session, self._conversation, self._settings = session, conversation, settings
        self._stop_texts, self._terminal = stop_texts, terminal
        self._copies = CopyDrafter()
        self.traces = False  # entropies are wanted although they are not shown

    def answer(self, question: str, journal: Journal | None, interrupt: Callable[[], bool]) -> Answer:
        """Answer a question.

        Args:
            journal: is told what is shown.
            interrupt: polled between passes; True ends the answer.
        Raises: ModelFileError where the template refuses; ContextFullError where there is no room for the question;
            EngineError where a pass fails. The conversation has not grown then.
        """
        with Suspensions(self._terminal.shell_keys) as suspensions:
            return self._answer(question, journal, interrupt, suspensions)

    def _answer(self, question: str, journal: Journal | None, interrupt: Callable[[], bool], suspensions: Suspensions) -> Answer:
        conversation, settings = self._conversation, self._settings
        prompt, n_dropped = self._fitting(question, 0)
        text = TextStream(self._stop_texts)
        tags = conversation.tags
        inside = opens_reasoning(prompt.text, tags)
        show = Show(self._terminal, settings, self._session, tags, inside=inside, journal=journal)
        # in pieces, where turns are dropped while the answer goes on
        tokens: list[int] = []
        steps: list[Step] = []
        stats = Stats()
        sampling = settings.sampling.with_seed()
        while True:
            progress = ReadingProgress(self._terminal)

            def stop(progress: ReadingProgress = progress, n: int = len(prompt.ids) + len(tokens)) -> bool:
                progress.show(self._session.n_past, n)
                return interrupt() or text.stopped

            ids = (*prompt.ids, *tokens)
            n_read, seconds = self._read_ahead(prompt, stop, suspensions.clock)
            with self._session.new_sampler(sampling) as sampler:
                generation = generate(
                    self._session,
                    ids,
                    policy=settings.policy,
                    rule=settings.rule,
                    sampler=sampler,
                    max_tokens=(settings.max_tokens or self._session.n_ctx) - len(tokens),
                    stop=stop,
                    copies=self._copies if settings.copy else None,
                    entropies=settings.trace or self.traces,
                    clock=suspensions.clock,
                )
                try:
                    for step in generation:
                        progress.end()
                        steps.append(step)
                        if suspensions.take():
                            show.forget()
                        show.step(step, text)
                except BaseException:
                    progress.end()
                    show.finish(text)
                    raise
            tokens += generation.tokens
            generation.stats.n_prefilled += n_read
            generation.stats.seconds["prefill"] += seconds
            stats.join(generation.stats)
            stats.n_prompt = stats.n_prompt if steps else len(ids)
            if not self._goes_on(generation):
                break
            try:
                prompt, n_more = self._fitting(question, len(tokens))
            except ContextFullError:
                break
            if not n_more:
                break
            n_dropped += n_more
            sampling = replace(sampling, seed=((sampling.seed or 0) + 1) % MAX_SEED)
        if suspensions.take():
            show.forget()
        show.finish(text)
        # Stopped before the first token: as if it had not been asked.
        if tokens:
            conversation.answered(prompt, text.text, None if text.stopped else tokens)
            self._session.checkpoint()
        return Answer(text.text, generation.finish_reason, stats, tuple(steps), n_dropped, generation.policy.name)

    def _goes_on(self, generation: Generation) -> bool:
        # a grammar would begin anew in the middle of the text
        return (
            generation.finish_reason == "context"
            and self._settings.overflow == "drop"
            and not self._settings.sampling.constrained
        )

    def _fitting(self, question: str, n_said: int) -> tuple[Prompt, int]:
        """The prompt with the oldest turns dropped until there is room, and how many were.

        Args:
            n_said: tokens of the answer that there are already.
        Raises: ContextFullError, with the prompt's tokens in it, where there is none; no turns are dropped then.
        """
        conversation, n_ctx = self._conversation, self._session.n_ctx
        before, n = conversation.n_dropped, 0
        prompt = conversation.ask(question)
        room = min(N_ANSWER, n_ctx // 4) if self._settings.overflow == "drop" else 1
        # a single question may leave less room than that
        while len(prompt.ids) + n_said + room > n_ctx:
            if self._settings.overflow != "drop" or not conversation.drop_oldest():
                break
            n += 1
            prompt = conversation.ask(question)
        if len(prompt.ids) + n_said >= n_ctx:
            conversation.n_dropped = before
            raise ContextFullError(str(len(prompt.ids)))
        return prompt, n

    def _read_ahead(self, prompt: Prompt, stop: Callable[[], bool], clock: Callable[[], float]) -> tuple[int, float]:
        """Read what the prompts to come share with this one, and note the place; tokens computed, seconds."""
        if not self._session.needs_checkpoints:
            return 0, 0.0
        # with a head, what is after a place has to have a token that stays, and the prompt's last token is always computed
        n_stable = min(self._conversation.stable(prompt), len(prompt.ids) - 2)
        begin = clock()
        return self._session.read_ahead(prompt.ids, n_stable, stop), clock() - begin
