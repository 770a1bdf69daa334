"""Prints what the model writes: greedily and at temperature 0.8, for stories and for a chat.

    python sample.py [--model ../stories] ["A prompt" ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ['Once upon a time', 'The little robot', 'One day', 'Tom', 'In the forest', 'Lily and Ben were']
CHATS = [
    'Hello', 'Tell me a story about a fox in the forest.', 'Who are you?', 'What is the capital of France?',
    'Write a short story about a dragon who is afraid of the dark.', 'Thank you!',
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', type=Path, default=Path(__file__).parent.parent / 'stories')
    parser.add_argument('prompts', nargs='*')
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    chats = [[{'role': 'user', 'content': text}] for text in ([] if args.prompts else CHATS)]
    inputs = [(prompt, tokenizer(prompt, return_tensors='pt')) for prompt in args.prompts or PROMPTS]
    inputs += [
        (chat[0]['content'],
         tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors='pt', return_dict=True))
        for chat in chats
    ]  # fmt: skip
    torch.manual_seed(0)
    for prompt, encoded in inputs:
        for temperature in (0.0, 0.8):
            choice = dict(do_sample=True, temperature=temperature) if temperature else dict(do_sample=False)
            ids = model.generate(**encoded, **choice, max_new_tokens=400)[0][encoded['input_ids'].shape[1] :]
            ended = ids[-1].item() in model.generation_config.eos_token_id
            print(f'=== {prompt!r}, temperature {temperature}, {len(ids)} tokens, ended: {ended}')
            print(tokenizer.decode(ids, skip_special_tokens=True), end='\n\n')


if __name__ == '__main__':
    main()
