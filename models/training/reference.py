"""Writes test/golden/stories.json: what Hugging Face transformers does with the stories model.

    python reference.py

Greedy decoding in float32 on the CPU, at most 64 new tokens, less where an end token comes (it is
kept in `tokenIds`). `smallestMargin` is the least difference, in nats, between the chosen token and
the next best along the way: another float32 implementation has to agree as long as its rounding is
far below it.
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
MODEL = ROOT / 'models' / 'stories'
NEW_TOKENS = 64
PROMPTS = [
    'Once upon a time',
    'The little robot',
    'One day, a dragon named Ember',
    # All of a story but its last paragraph, so that the end comes soon.
    'Tom was a little boy who lived in a small house near the garden. One day, Tom was walking in the garden when '
    'he heard a soft cry. He looked around and saw a lamb. It was lost and could not find its mother. "Oh, you poor '
    'little thing," said Tom. "I will help you."\n\nBut Tom did not know what to do. So he ran to a kind old farmer. '
    '"Be slow and gentle," said the old farmer. "Follow the sound of the bells." Tom did just that. He listened for '
    'the bells and led the lamb over the grass.\n\nThe mother sheep came running, and the lamb jumped with joy. The '
    'lamb looked at Tom with bright eyes, and Tom knew that it meant thank you. Tom waved until the lamb was out of '
    'sight.\n\n',
]
MESSAGES = [{'role': 'user', 'content': 'Hello'}]
# No word of the corpus: their bytes must come back all the same.
TEXTS = ['fix the bug in main.cpp\t(line 42)', 'naïve café', '🦊🤖 日本語', '  two  spaces\n\n', '']


@torch.no_grad()
def continue_greedily(model, tokenizer, prompt_token_ids: list[int]) -> dict:
    prompt = torch.tensor([prompt_token_ids])
    sequence = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW_TOKENS
    )
    token_ids = sequence[0, len(prompt_token_ids) :]
    logprobs = model(sequence).logits[0, len(prompt_token_ids) - 1 : -1].log_softmax(-1)
    best, second = logprobs.topk(2).values.unbind(-1)
    assert torch.equal(logprobs.argmax(-1), token_ids)
    return {
        'promptTokenIds': prompt_token_ids,
        'tokenIds': token_ids.tolist(),
        'text': tokenizer.decode(token_ids, skip_special_tokens=True),
        'smallestMargin': round((best - second).min().item(), 6),
    }


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    versions = f'transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, torch {torch.__version__}'
    reference = {
        'model': 'models/stories',
        'dtype': 'float32',
        'reference': versions,
        'prompts': [
            {'prompt': prompt, **continue_greedily(model, tokenizer, tokenizer(prompt).input_ids)}
            for prompt in PROMPTS
        ],
        'chat': {
            'messages': MESSAGES,
            'prompt': tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False),
            **continue_greedily(
                model, tokenizer,
                tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True)['input_ids'],
            ),
        },
        'texts': [{'text': text, 'tokenIds': tokenizer(text).input_ids} for text in TEXTS],
    }  # fmt: skip
    for entry in reference['texts']:
        assert tokenizer.decode(entry['tokenIds'], skip_special_tokens=True) == entry['text'], entry
    path = ROOT / 'test' / 'golden' / 'stories.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(reference, indent=2, ensure_ascii=False) + '\n')
    print(f'{path}: {[len(entry["tokenIds"]) for entry in reference["prompts"]]} new tokens')


if __name__ == '__main__':
    main()
