"""A policy at our own port whose engine is a script: one token per character, and switches to hold or break it."""

from __future__ import annotations

import threading
import time

from deeprec.explore.tokens import TokenizedPolicy
from deeprec.types import Segment

EOS = 0
LETTERS = "_abcdefghijklmnopqrstuvwxyz <>\n."


class Letters:
    """A tokenizer of single characters; ``_`` is the end of text, the angle brackets are special."""

    eos_token_id = EOS
    all_special_ids = (EOS, LETTERS.index("<"), LETTERS.index(">"))

    def __len__(self):
        return len(LETTERS)

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return [LETTERS.index(letter) for letter in text]

    def decode(self, tokens, skip_special_tokens, clean_up_tokenization_spaces):
        return "".join(LETTERS[token] for token in tokens)


class LettersPolicy(TokenizedPolicy):
    """Continues a prompt with the alphabet from its last letter on; after ``z`` comes the end of text.

    ``calls`` keeps the prompts of each ``start``, ``widths`` the rows and the limit of each ``generate``. A
    ``generate`` that finds ``hold`` clear waits for it. A prompt that holds a letter of ``broken`` fails its batch.
    """

    def __init__(self, longest=200):
        super().__init__(Letters())
        self._longest = longest
        self.calls, self.widths, self.seeds = [], [], []
        self.hold, self.reached = threading.Event(), threading.Event()
        self.hold.set()
        self.broken = ""
        self.closed = False

    @property
    def longest(self):
        return self._longest

    def start(self, prompts, *, seed=None):
        if prompts != [(EOS,)]:
            self.calls.append([self.decode(prompt) for prompt in prompts])
            self.seeds.append(seed)
        return LettersGeneration(self, prompts)

    def close(self):
        self.closed = True


class LettersGeneration:
    def __init__(self, policy, prompts):
        self._policy = policy
        self._last = [prompt[-1] for prompt in prompts]
        self._prompts = [policy.decode(prompt) for prompt in prompts]

    def generate(self, rows, *, stop_ids, max_new_tokens, temperature, rules=()):
        policy = self._policy
        policy.reached.set()
        assert policy.hold.wait(30)
        if any(letter in self._prompts[row] for row in rows for letter in policy.broken):
            raise RuntimeError("broken")
        policy.widths.append((len(rows), max_new_tokens))
        return [self._write(row, stop_ids, max_new_tokens) for row in rows]

    def _write(self, row, stop_ids, limit):
        tokens = []
        while len(tokens) < limit and not (tokens and tokens[-1] in stop_ids):
            self._last[row] = self._last[row] + 1 if 0 < self._last[row] < LETTERS.index("z") else EOS
            tokens.append(self._last[row])
        return Segment(tuple(tokens), (-0.5,) * len(tokens))


def eventually(condition):
    """Wait until the condition holds; fail after 20 seconds."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
