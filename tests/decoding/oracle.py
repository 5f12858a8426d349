"""Budget forcing again, in plain Python: the design read as one straight story per sequence.

Independent of jaxs1.decoding: `Case` holds lists, `Oracle` is a coroutine that asks for a choice
and writes tokens. Nothing here looks at phases or states.
"""

import contextlib
from dataclasses import dataclass, field


class Over(Exception):
    """The sequence has ended."""


@dataclass
class Case:
    """One request in token ids; names as in the design."""

    mode: str = "strict"
    thinking_budget: int = -1
    min_thinking: int = 0
    num_waits: int = 0
    max_answer_tokens: int = -1
    min_answer_tokens: int = 1
    max_new_tokens: int = 10_000
    last: int = 0
    ends: list = field(default_factory=list)  # of thinking, token sequences, delimiters first
    whole: list = field(default_factory=list)  # ends that are a close already, to the last token
    stops: list = field(default_factory=list)  # of the answer; they end thinking as well
    reopen: list = field(default_factory=list)
    close: list = field(default_factory=list)
    lead: list = field(default_factory=list)
    answer_prefix: list = field(default_factory=list)
    waits: list = field(default_factory=list)
    newlines: set = field(default_factory=set)
    start: list = field(default_factory=list)  # of every answer
    calls: list = field(default_factory=list)  # ends that begin the answer


class Oracle:
    """Feed `choose` until `over`; then `tokens`, `kinds`, `forced`, `log` tell what happened.

    `choices` has what was chosen where each token is, -1 where the choice was lost, and `gated`
    whether something was forbidden then. `asks`: whether the next choice will not be lost.
    """

    def __init__(self, case):
        self.case = case
        self.tokens, self.kinds, self.forced, self.log = [], [], [], []
        self.choices, self.gated = [], []
        self._losing = False
        self.surplus = []  # tokens that were generated and thrown away
        self.seen = []  # what the next choice depends on: tokens, or thrown-away ones as well
        self.ended_by, self.finish = None, None
        self.banned = set()
        self.over = False
        self._story = self._tell()
        self._resume(None)

    def choose(self, token):
        self._resume(token)

    def _resume(self, value):
        try:
            self._story.send(value)
        except StopIteration:
            self.over = True
            self.banned = set()

    def _tell(self):
        with contextlib.suppress(Over):
            yield from (self._readme() if self.case.mode == "s1_readme" else self._forcing())

    # what every mode needs

    def _pick(self, banned=()):
        """One choice of the model's."""
        self.banned = set(banned)
        self.asks = not self._losing
        self._choice = yield
        self._gated = bool(banned)
        return self._choice

    def _lose(self):
        """A choice that is lost, because text is being written."""
        self._losing = True
        yield from self._pick()
        self._losing, self._choice = False, -1

    def _put(self, token, kind, forced):
        self.tokens.append(token)
        self.seen.append(token)
        self.kinds.append(kind)
        self.forced.append(forced)
        self.choices.append(self._choice)
        self.gated.append(self._gated)

    def _check_room(self):
        if len(self.tokens) >= self.case.max_new_tokens:
            self.finish = "length"
            raise Over

    def _write(self, ids, kind, string=None, limit=None):
        """Write a text; the log gets it with its first token."""
        for i, token in enumerate(ids[:limit]):
            yield from self._lose()
            if i == 0:
                self.log.append((len(self.tokens), kind, string))
            self._put(token, kind, True)
            self._check_room()

    def _narrow(self):
        case = self.case
        texts = 0 if case.mode == "s1_readme" else len(case.lead + case.close + case.answer_prefix)
        return len(self.tokens) >= case.max_new_tokens - texts - case.min_answer_tokens

    def _wait_has_room(self, text):
        case = self.case
        texts = 0 if case.mode == "s1_readme" else len(case.lead + case.close + case.answer_prefix)
        return (
            len(self.tokens) + len(text) + 1 <= case.max_new_tokens - texts - case.min_answer_tokens
        )

    def _completions(self, own):
        """Tokens that would complete an end of thinking."""
        return {
            e[-1]
            for e in self.case.ends + self.case.stops + self.case.calls
            if len(e) == 1 or own[-(len(e) - 1) :] == e[:-1]
        }

    def _ending(self, own, token):
        for end in self.case.ends + self.case.stops + self.case.calls:
            if (own + [token])[-len(end) :] == end:
                return end
        return None

    def _answer(self, first=None, used=0):
        """The answer; true when it begins to think anew."""
        case, own = self.case, []
        while True:
            token = first if first is not None else (yield from self._pick())
            first = None
            self._put(token, "answer", False)
            own.append(token)
            used += 1
            if any(own[-len(stop) :] == stop for stop in case.stops):
                self.finish = "stop"
                raise Over
            if 0 <= case.max_answer_tokens <= used:
                self.finish = "length"
                raise Over
            self._check_room()
            if case.reopen and own[-len(case.reopen) :] == case.reopen:
                return used

    # strict and s1_harness: thinking, close, answer, and perhaps once more

    def _forcing(self):
        case = self.case
        self.waited = 0
        self.count = 0  # thinking tokens, with Waits
        answered = 0
        while True:
            end, token = yield from (
                self._think_strict() if case.mode == "strict" else self._think_harness()
            )
            if end is None:
                last = self.tokens[-1] if self.tokens else case.last
                lead = [] if last in case.newlines else case.lead
                yield from self._write(lead + case.close, "close")
                yield from self._write(case.answer_prefix, "answer_prefix")
            else:
                self.ended_by = "model"
                yield from self._close_after(end, token)
            answered += yield from self._begin_answer(end, answered)
            answered = yield from self._answer(used=answered)

    def _begin_answer(self, end, answered):
        """Texts that an answer begins with belong to it; returns their number of tokens."""
        case = self.case
        text = case.start or (end if end in case.calls else [])
        for i, token in enumerate(text):
            yield from self._pick()
            if i == 0:
                self.log.append((len(self.tokens), "answer", None))
            self._put(token, "answer", True)
            if 0 <= case.max_answer_tokens <= answered + i + 1:
                self.finish = "length"
                raise Over
            self._check_room()
        return len(text)

    def _close_after(self, end, token):
        """The model ended; what it has already written of the close stays."""
        close = self.case.close
        if not self.surplus and (close[: len(end)] == end or end in self.case.whole):
            self._put(token, "close", False)
            self._check_room()
            rest = [] if end in self.case.whole else close[len(end) :]
            yield from self._write(rest, "close")
            return
        # the choice was already made in this step: it is replaced by the close's first token
        self.log.append((len(self.tokens), "close", None))
        self._put(close[0], "close", True)
        self._check_room()
        for t in close[1:]:
            yield from self._lose()
            self._put(t, "close", True)
            self._check_room()

    def _wait(self, text):
        """Write a Wait in place of the choice that was just made."""
        which = self.waited % len(self.case.waits)
        self.waited += 1
        self.log.append((len(self.tokens), "wait", which))
        self._put(text[0], "wait", True)
        self._check_room()
        for t in text[1:]:
            yield from self._lose()
            self._put(t, "wait", True)
            self._check_room()

    def _think_strict(self):
        """Returns the end and its last token, or None twice where thinking was cut."""
        case, own, fresh = self.case, [], False
        while True:
            if 0 <= case.thinking_budget <= self.count:
                self.ended_by = "budget"
                return None, None
            if self._narrow():
                self.ended_by = "context"
                return None, None
            early = self.count < case.min_thinking or fresh
            token = yield from self._pick(self._completions(own) if early else ())
            end = self._ending(own, token)
            if end is None:
                self._put(token, "thinking", False)
                own.append(token)
                self.count += 1
                fresh = False
                self._check_room()
                continue
            if self.waited < case.num_waits:
                text = case.waits[self.waited % len(case.waits)]
                enough = (
                    case.thinking_budget < 0 or self.count + len(text) + 1 <= case.thinking_budget
                )
                if enough and self._wait_has_room(text):
                    yield from self._wait(text)
                    self.count += len(text)
                    own, fresh = [], True
                    continue
            return end, token

    def _think_harness(self):
        """Rounds of a fresh budget each; what exceeds one budget in all is thrown away."""
        end, token = yield from self._rounds()
        self.seen = list(self.tokens)
        return end, token

    def _rounds(self):
        case = self.case
        for r in range(case.num_waits + 1):
            own = []
            while True:
                if 0 <= case.thinking_budget <= len(own):
                    self.ended_by = "budget"
                    return None, None
                if self._no_context([]):
                    self.ended_by = "budget" if self.surplus else "context"
                    return None, None
                early = self.count < case.min_thinking or (case.num_waits and not own)
                token = yield from self._pick(self._completions(own) if early else ())
                end = self._ending(own, token)
                if end is not None:
                    break
                self._keep_or_not(token, "thinking", False)
                own.append(token)
            text = case.waits[r % len(case.waits)] if case.waits else []
            if r == case.num_waits or self._no_context(text):
                break
            if not self._is_full():
                self.log.append((len(self.tokens), "wait", r % len(case.waits)))
            for i, t in enumerate(text):
                if i:
                    yield from self._lose()
                self._keep_or_not(t, "wait", True)
        return end, token

    def _is_full(self):
        return 0 <= self.case.thinking_budget <= self.count

    def _keep_or_not(self, token, kind, forced):
        if self._is_full():
            self.surplus.append(token)
            self.seen.append(token)
        else:
            self.count += 1
            self._put(token, kind, forced)

    def _no_context(self, wait):
        """Whether a token, or a Wait and a token, find no room; a surplus may fill the context."""
        if self.case.thinking_budget < 0:
            return not self._wait_has_room(wait) if wait else self._narrow()
        return len(self.tokens) + len(self.surplus) + len(wait) + 1 > self.case.max_new_tokens

    # s1_readme: rounds with one cumulative budget, then the answer, nothing written between

    def _readme(self):
        case = self.case
        left = case.thinking_budget if case.thinking_budget >= 0 else 10**9
        if left == 0:
            self.ended_by = "budget"
        r, counted, fresh = 0, 0, False
        own = []
        while left > 0:
            if self._narrow():
                self.ended_by = "context"
                break
            early = counted < case.min_thinking or fresh
            token = yield from self._pick(self._completions(own) if early else ())
            fresh = False
            left -= 1
            counted += 1
            if self._ending(own, token) is None:
                self._put(token, "thinking", False)
                own.append(token)
                if left == 0:
                    self.ended_by = "budget"
                continue
            text = case.waits[r % len(case.waits)] if case.waits else []
            if r < case.num_waits and left > 0 and self._wait_has_room(text):
                r += 1
                self.waited = r - 1
                yield from self._wait(text)
                own, fresh = [], True
                continue
            self.ended_by = "model"
            yield from self._answer(first=token)
        yield from self._answer()
