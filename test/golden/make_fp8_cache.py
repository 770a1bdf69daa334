#!/usr/bin/env python3
"""Writes fp8Cache.json: transformers with keys and values rounded to fp8, by torch, as they enter its cache.

    python test/golden/make_fp8_cache.py

Needs torch and transformers 5.17 (CPU). The checkpoints and prompts are those of make.py. Each case has the scales of
keys and of values by layer, and for each prompt the greedy continuation in float32 and the logprob of every token of
both except the first. The choices of the continuation differ by at least MIN_GAP from the next.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

HERE = Path(__file__).resolve().parent
GENERATED = 32
MIN_GAP = 1e-3
LARGEST = torch.finfo(torch.float8_e4m3fn).max
PROMPT_LENGTHS = (1, 17, 200)
CASES = {
    'llama-grouped': None,
    'llama-grouped with scales': ([0.021, 0.047], [0.013, 0.0071]),
    'gemma2': None,
    'qwen3': None,
}


def rounded(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Saturates, as torch's conversion does not."""
    stored = (x / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return stored.to(x.dtype) * scale


class Float8Cache(DynamicCache):
    def __init__(self, scales) -> None:
        super().__init__()
        self.scales = scales

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        key_scale, value_scale = (each[layer_idx] for each in self.scales)
        keys, values = rounded(key_states, key_scale), rounded(value_states, value_scale)
        return super().update(keys, values, layer_idx, *args, **kwargs)


@torch.inference_mode()
def reference(model, scales, prompt: list[int]):
    """The continuation, the logprobs and the smallest gap; keys and values are computed a token at a time."""
    cache = Float8Cache(scales)
    tokens, logprobs, gap = list(prompt), [], float('inf')
    for position in range(len(prompt) + GENERATED - 1):
        logits = model(torch.tensor([[tokens[position]]]), past_key_values=cache, use_cache=True).logits[0, -1]
        rows = logits.float().log_softmax(-1)
        if position == len(tokens) - 1:
            first, second = rows.topk(2).values.tolist()
            gap = min(gap, first - second)
            tokens.append(int(rows.argmax()))
        logprobs.append(round(float(rows[tokens[position + 1]]), 6))
    return tokens[len(prompt) :], logprobs, gap


def main() -> None:
    cases = {}
    for name, scales in CASES.items():
        family = name.split(' ')[0]
        model = AutoModelForCausalLM.from_pretrained(
            HERE / 'checkpoints' / family, dtype=torch.float32, attn_implementation='eager'
        ).eval()
        num_layers = model.config.num_hidden_layers
        scales = scales or ([1.0] * num_layers, [1.0] * num_layers)
        prompts = []
        for length in PROMPT_LENGTHS:
            for seed in range(1000):
                generator = torch.Generator().manual_seed(seed)
                prompt = torch.randint(3, model.config.vocab_size, (length,), generator=generator).tolist()
                tokens, logprobs, gap = reference(model, scales, prompt)
                if gap >= MIN_GAP and len(set(tokens)) > 8:
                    break
            else:
                raise SystemExit(f'{name}: every prompt has an ambiguous choice')
            prompts.append({'promptTokenIds': prompt, 'tokenIds': tokens, 'logprobs': logprobs})
            print(f'{name}: {length} tokens, seed {seed}, gap {gap:.1e}, {len(set(tokens))} distinct', flush=True)
        cases[name] = {'keyScales': scales[0], 'valueScales': scales[1], 'prompts': prompts}
    lines = ',\n'.join(f'  {json.dumps(name)}: {json.dumps(case)}' for name, case in cases.items())
    (HERE / 'fp8Cache.json').write_text('{\n' + lines + '\n}\n')


main()
