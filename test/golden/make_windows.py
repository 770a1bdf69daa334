#!/usr/bin/env python3
"""Writes windows.json: long greedy continuations of models with sliding windows, by transformers.

    python test/golden/make_windows.py              every family
    python test/golden/make_windows.py olmo3 ...    some of them; the others keep their continuations

Needs torch and transformers 5.17 (CPU). The checkpoints are those of make.py. Each continuation passes the model's
window several times; it is computed in float32 without a KV cache, from a prompt whose choices are unambiguous: the
top two logits of each step differ by at least MIN_GAP.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
FAMILIES = sys.argv[1:] or ['gemma2', 'gemma3', 'mistral', 'olmo3', 'phi3', 'smollm3']
PROMPT = 20
GENERATED = 220
MIN_GAP = 1e-3


@torch.inference_mode()
def greedy(model, prompt: list[int]) -> tuple[list[int], float]:
    tokens, gap = list(prompt), float('inf')
    while len(tokens) < PROMPT + GENERATED and gap >= MIN_GAP:
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
        first, second = logits.topk(2).values.tolist()
        gap = min(gap, first - second)
        tokens.append(int(logits.argmax()))
    return tokens[PROMPT:], gap


def main() -> None:
    file = HERE / 'windows.json'
    cases = json.loads(file.read_text()) if file.exists() else {}
    for family in FAMILIES:
        model = AutoModelForCausalLM.from_pretrained(
            HERE / 'checkpoints' / family, dtype=torch.float32, attn_implementation='eager'
        ).eval()
        for seed in range(2000):
            generator = torch.Generator().manual_seed(seed)
            prompt = torch.randint(3, model.config.vocab_size, (PROMPT,), generator=generator).tolist()
            tokens, gap = greedy(model, prompt)
            if gap >= MIN_GAP and len(set(tokens)) > 20:
                break
        else:
            raise SystemExit(f'{family}: every prompt has an ambiguous choice')
        cases[family] = {'promptTokenIds': prompt, 'tokenIds': tokens}
        print(f'{family}: seed {seed}, gap {gap:.2e}, {len(set(tokens))} distinct tokens', flush=True)
    lines = ',\n'.join(f'  {json.dumps(name)}: {json.dumps(case)}' for name, case in cases.items())
    file.write_text('{\n' + lines + '\n}\n')


main()
