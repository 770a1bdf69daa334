"""The corpus: stories and conversations, all written by a grammar.

Document i of a seed is always the same text, whichever process writes it:

    python corpus.py --seed 1 --count 5              # print five documents
    python corpus.py --seed 1 --count 20000 --check  # look for slips of the grammar
"""

from __future__ import annotations

import argparse
import random
import re

from conversations import conversation, render_chat
from grammar import story

CHAT_SHARE = 0.35  # of all documents


def document(seed: int, index: int) -> str:
    """The text of one document, without its begin and end tokens."""
    rng = random.Random(f'{seed}/{index}')
    if rng.random() < CHAT_SHARE:
        return render_chat(conversation(rng))
    return story(rng).text


def check(texts: list[str]) -> None:
    """Finds what a slip in the grammar leaves behind: a bracket, a wrong article, a lower-case start."""
    slips = {
        'bracket': r'[\[\]{}|]', 'double space': r'  | [.,!?]', 'article': r'\b[Aa] [aeio]|\b[Aa]n (?!hour)[^aeiou]',
        'lower case': r'[^.][.] [a-z]|\n[a-z]|^[a-z]', 'doubled word': r'\b(\w+) \1\b', 'dots': r'\.\.|[!?,]\.',
    }  # fmt: skip
    for name, pattern in slips.items():
        hits = [match for text in texts for match in re.finditer(f'.{{0,30}}(?:{pattern}).{{0,30}}', text)]
        print(f'{name}: {len(hits)}', *(repr(hit[0]) for hit in hits[:5]), sep='\n    ')
    unbalanced = [text for text in texts if any(p.count('"') % 2 for p in text.split('\n\n'))]
    print(f'unbalanced quotes: {len(unbalanced)}', *unbalanced[:2], sep='\n    ')
    lengths = sorted(len(text.split()) for text in texts)
    vocabulary = {word for text in texts for word in re.findall(r"[A-Za-z']+", text)}
    print(f'words: min {lengths[0]}, 5% {lengths[len(lengths) // 20]}, median {lengths[len(lengths) // 2]}, '
          f'95% {lengths[-len(lengths) // 20]}, max {lengths[-1]}')
    print(f'{len(vocabulary)} different words, {len(set(texts))} of {len(texts)} documents distinct')


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--count', type=int, default=5)
    parser.add_argument('--check', action='store_true', help='report slips of the grammar in the stories')
    args = parser.parse_args()
    if args.check:
        check([story(random.Random(f'{args.seed}/{index}')).text for index in range(args.count)])
    else:
        for index in range(args.count):
            print(document(args.seed, index), end='\n\n---\n\n')
