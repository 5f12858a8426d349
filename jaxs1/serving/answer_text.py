"""Text of one channel of a completion as it is sent: blanks at the ends dropped, stops obeyed."""

from __future__ import annotations

from collections.abc import Sequence


class ChannelText:
    """Pieces in, pieces out; what might have to be dropped is held back.

    All that is sent adds up to the text before the first stop, without blanks at its ends: the same
    as `Completion.thinking` and `Completion.answer`.

    Args:
        stops: texts that end the channel
        strip: whether to drop blanks at both ends
    """

    def __init__(self, stops: Sequence[str] = (), *, strip: bool = True):
        self._stops, self._strip = stops, strip
        self._held = ""
        self._begun = not strip
        #: The stop that has ended the channel, and the text behind it.
        self.stopped_by: str | None = None
        self.rest = ""

    def add(self, text: str) -> str:
        """Append text; returns what can be sent."""
        if self.stopped_by is not None:
            return ""
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.stopped_by = min(found)
            self.rest = self._held[at + len(self.stopped_by) :]
            self._held = self._held[:at]
            return self.flush()
        return self._send(len(self._held) - self._begun_stop())

    def flush(self) -> str:
        """What can still be sent once the channel has ended."""
        return self._send(len(self._held))

    def _send(self, end: int) -> str:
        """Send the held text before `end`, but for blanks that may turn out to be the last ones."""
        if self._strip:
            end = len(self._held[:end].rstrip())
        piece, self._held = self._held[:end], self._held[end:]
        if not self._begun:
            piece = piece.lstrip()
            self._begun = bool(piece)
        return piece

    def _begun_stop(self) -> int:
        """Length of the longest ending that begins a stop."""
        text = self._held
        lengths = (
            n
            for stop in self._stops
            for n in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:n])
        )
        return max(lengths, default=0)
