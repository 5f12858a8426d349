"""A tokenizer of a few whole words, for tests that need no real one."""


class Words:
    """Encodes the longest known word at each position; anything else is x."""

    eos_token_id = 1
    vocabulary = ("", "<eos>", "<|im_start|>", "<|im_end|>", "think", "answer", "\n", "Wait", "x")

    def __init__(self, *more):
        self.words = (*self.vocabulary, *more)

    def __len__(self):
        return len(self.words)

    def __call__(self, text, add_special_tokens=True):
        assert not add_special_tokens
        ids = []
        while text:
            known = [w for w in self.words[1:] if text.startswith(w)]
            word = max(known, key=len) if known else "x"
            ids.append(self.words.index(word))
            text = text[len(word) if known else 1 :]
        return {"input_ids": ids}

    def decode(self, ids, **_):
        return "".join(self.words[i] for i in ids)

    def batch_decode(self, rows):
        return [self.decode(row) for row in rows]


def tag_tokenizer():
    return Words("<think>", "</think>")
