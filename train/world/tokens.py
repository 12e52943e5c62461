"""The world's CLIP tokenizer: a byte alphabet and just the merges that make every world word one token."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

MAX_LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def _alphabet() -> list[str]:
    """The 256 printable stand-ins of bytes that CLIP's BPE uses, in byte order of the printable ones first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = [256 + i for i in range(256 - len(printable))]
    return [chr(code) for code in printable + extra]


def merges_for(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Plain BPE on a word list until each word is one symbol; ties break alphabetically."""
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        counts = Counter(pair for symbols in pieces.values() for pair in pairwise(symbols))
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word, symbols in pieces.items():
            joined: list[str] = []
            for symbol in symbols:
                if joined and (joined[-1], symbol) == best:
                    joined[-1] += symbol
                else:
                    joined.append(symbol)
            pieces[word] = joined


def build_tokenizer(words: tuple[str, ...]) -> CLIPTokenizer:
    """A CLIPTokenizer of about 900 tokens; padded with the end token to 32."""
    alphabet = _alphabet()
    merges = merges_for(words)
    entries = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *(a + b for a, b in merges), START, END]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=MAX_LENGTH,
    )


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the tokenizer with the two classic files beside tokenizer.json, for older readers."""
    tokenizer.save_pretrained(folder)
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    lines = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]))
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
